"""The command ``laplora``: each module is one command or a few of one kind, and ``app`` puts them together.

The commands stand above the library, the server and the jobs, and import of these what they use when they run.
"""

"""Who calls, and what a caller may do.

``callers`` is the name and the scopes of a caller. ``access`` has the table of what each endpoint needs, and refuses
before a body is read; ``keyring`` finds whose token it is, in the keys that ``keys_file`` reads and writes.
"""

"""A decision model somewhere else: it is asked over HTTP, and its answers are corrected here.

Start with ``asking``: one question over states. ``remote_model`` makes a classifier of it that ``laplora.fit`` takes.
"""

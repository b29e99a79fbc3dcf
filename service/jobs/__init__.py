"""Large evaluations: uploaded as JSON Lines, scored in the background, kept on disk across restarts.

``lines.py`` and ``upload.py`` take an upload in, ``store.py`` and ``folder.py`` keep it, ``runner.py`` scores it,
``board.py`` knows every job and is what the routes ask.
"""

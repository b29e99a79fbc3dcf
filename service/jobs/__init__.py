"""Large evaluations: uploaded as JSON Lines, scored in the background, kept on disk across restarts.

``records`` says what a job is: read it first. ``board`` is what the routes and the application call. ``runner`` decides
whose turn it is, ``run`` takes one job through, chunk by chunk (``chunks``), and ``ledger`` keeps every change, in
memory and on disk: ``folder`` holds the files, ``store`` the database. ``upload`` takes lines in, ``quota`` bounds
them, ``waiting`` has turns and pauses, ``metrics`` measures, and ``shown`` writes a job as the contract does.
"""

"""Large evaluations: uploaded as a file of rows, scored in the background, kept on disk across restarts.

``records`` says what a job is: read it first. ``board`` is what the routes and the application call. ``runner`` decides
whose turn it is, ``run`` takes one job through, chunk by chunk (``chunks``), by its ``means``: ``under_way``,
``left_out`` and ``absence`` keep count, ``ending`` ends it. ``ledger`` keeps every change, first on ``disk``, then
among the ``known`` jobs in memory, and tells of it (``publishing``). ``sharing`` says which jobs are this server's.

``folder`` and ``remote`` hold the uploads, ``store`` the rest (``writing``, ``claims``, ``kept``), in a ``database``
that ``tables`` and ``migrations`` describe. ``taking`` makes an ``upload`` a job (``splitting``, ``parquet_rows``,
``rows_in``, ``columns``), ``quota`` bounds them, ``waiting`` has turns and pauses, ``metrics`` measures. ``answered``
is every row with its answer, which ``tables_out``, ``slices`` and ``report`` stand on. ``shown`` and ``events`` write a
job as the contract does.
"""

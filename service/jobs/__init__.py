"""Large evaluations: uploaded as a file of rows, scored in the background, kept on disk across restarts.

``records`` says what a job is: read it first. ``board`` is what the routes and the application call. ``runner`` decides
whose turn it is, ``run`` takes one job through, chunk by chunk (``chunks``), and ``ledger`` keeps every change, in
memory and on disk: ``folder`` and ``remote`` hold the uploads, ``store`` the rest, in a ``database`` that ``tables``
and ``migrations`` describe. ``upload`` takes rows in (``splitting``, ``parquet_rows``, ``rows_in``, ``columns``),
``quota`` bounds them, ``waiting`` has turns and pauses, ``metrics`` measures. ``answered`` is every row with its
answer, which ``tables_out`` and ``slices`` stand on; ``shown`` and ``events`` write a job as the contract does.
"""

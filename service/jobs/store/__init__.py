"""The store of jobs. ``ledger`` makes each change, on ``disk``, then in ``memory``; ``sharing`` says whose they are.

On disk: uploads in a ``folder`` or a ``remote`` store, the rest in a ``database`` by its ``schema``: ``job_tables``
writes, ``reads`` and ``claims`` are beside it. ``records`` says what a job is.
"""

"""Data and training of studies at equal labels; what the first one measured is in RESULTS.md, as a record.

``plan`` (what is compared, fixed before any result), ``rows``, ``tasks`` and ``splits`` (the data), ``adapters``
(training), ``gather`` (one forward pass over rows). PLAN.md is the plan of the next study.
"""

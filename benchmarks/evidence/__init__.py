"""Data, training and decision of studies at equal labels; what the first one measured is in RESULTS.md, as a record.

``plan`` (what was compared, fixed before any result), ``rows``, ``tasks`` and ``splits`` (the data), ``adapters``
(training), ``gather`` (one forward pass over rows), ``results`` (the committed figures), ``decision`` (better, level
or worse). PLAN.md is the plan of the next study.
"""

"""The rows of a run.

Read ``examples`` first (what every source becomes), then ``section`` (the configuration, and ``load_splits``).
``benchmarks`` and ``sources`` know the public data sets, ``tables`` and ``files`` read a user's files, ``splitting``
cuts splits without duplicates. ``corruptions`` and ``variants`` make further inputs out of rows.
"""

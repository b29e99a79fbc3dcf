"""The rows of a run.

Read ``examples`` first (what every source becomes), then ``section`` (the configuration, and ``load_splits``).
``benchmarks`` and ``sources`` know the public data sets, ``files`` reads a user's files by ``laplora.data``,
``hub_tables`` the hub's, and ``splitting`` cuts splits without duplicates.
"""

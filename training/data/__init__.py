"""The rows of a run.

Read ``examples`` first (what every source becomes), then ``section`` (the configuration, and ``load_splits``).
``corruptions`` and ``variants`` make further inputs out of rows.
"""

"""laplora beside its peers on the same weights and rows: ``python -m benchmarks.peers``, and docs/evidence.md.

Read ``subject`` (a model and its rows), ``dense`` (the truth on tiny models) and ``ours`` first. Each ``against_*``
compares with one package, which its ``*_calls`` call; ``tables`` writes the pages. Needs the extra ``peers``.
"""

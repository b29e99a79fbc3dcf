"""laplora beside its peers on the same weights and rows: ``python -m benchmarks.peers``, and docs/evidence.md.

Read ``subject`` (a model and its rows) and ``ours`` first. ``against_laplace`` compares with laplace-torch, which
``laplace_torch_calls`` calls, also for ``benchmarks.speed``. Needs the extra ``peers``.
"""

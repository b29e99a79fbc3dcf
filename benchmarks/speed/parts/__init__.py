"""The parts of ``python -m benchmarks.speed``, one file each with a function ``run(conditions, quick=...)``.

Answers: ``predict``, ``pool`` and ``peers``. Fits: ``fit``. Memory: ``large``. The server: ``server``, ``overload`` and
``start``; files: ``workers``.
"""

"""The parts of ``python -m benchmarks.speed``, one file each with a function ``run(conditions, quick=...)``.

Of an answer: ``predict``, ``pool`` and ``peers``. Of a fit: ``fit``. Of memory: ``large``. Of a server: ``server``,
``overload`` and ``start``; of a file: ``workers``.
"""

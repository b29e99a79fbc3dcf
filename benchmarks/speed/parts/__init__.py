"""The parts of ``python -m benchmarks.speed``, one file each with a function ``run(conditions, quick=...)``.

Of an answer: ``predict``, ``subset``, ``classes``, ``mixed`` and ``peers``. Of a fit: ``fit``. Of memory: ``memory``,
``large`` and the formulas of ``size``. Of a server: ``server``, ``overload`` and ``start``; of a file: ``workers``.
"""

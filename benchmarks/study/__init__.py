"""The calibration study: every alternative on many tasks and seeds, from one set of Jacobians each.

In the order of a run (``python -m benchmarks.study``): ``config``, ``gather`` (the only part that runs the model),
``store`` (what it gave), ``structures`` (posteriors that only serve comparison), ``compute`` (every alternative),
``job`` (all of it, resumable). ``publish`` scores it (``results``) and writes docs/results.md (``pages``).
"""

"""The calibration study: every alternative on many tasks and seeds, from one set of Jacobians each.

In the order of a run (``python -m benchmarks.study``): ``config`` (tasks, seeds), ``gather`` (the only part that runs
the model), ``store`` (what it gave, on disk), ``structures`` (posteriors that only serve comparison), ``compute``
(every alternative), ``job`` (all of it, resumable). ``publish`` scores what is finished (``results``) and makes
docs/results.md of it (``pages``); ``approximate`` compares structures with the exact posterior.
"""

"""The server: ``python -m service --artifact PATH``.

``app`` puts the parts together, ``__main__`` runs the process, ``lifecycle`` says how far it is from leaving. Below
them: ``http`` (what faces a client), ``jobs`` (large evaluations), ``feedback`` (later labels), ``artifacts``
(which are loaded), ``scoring`` (from a plan to its predictions), ``security`` (keys, callers) and ``telemetry`` (log,
metrics, traces). docs/architecture.md has the way of one POST /predict, file by file.
"""

"""The server: ``python -m service --artifact PATH``.

``app`` puts the parts together, ``__main__`` runs the process, ``lifecycle`` says how far it is from leaving. Below
them: ``http`` (what faces a client), ``jobs`` (large evaluations), ``feedback`` (later labels), ``artifacts``
(which are loaded), ``scoring`` (from a plan to its predictions), ``security`` (keys, callers) and ``telemetry`` (log,
metrics, traces).

The way of one POST /predict, ten files in the order in which they first act. Before them, every request gets its id
and its line in the log (``http/request_context.py``) and shows its key (``security/access.py``).

1. ``http/in_flight.py``: a place among the requests in flight, or 429 or 503 before the body is read.
2. ``http/body.py``: the body, bounded and parsed (``json_parsing.py``), then typed by ``schemas``.
3. ``http/routes/predict.py``: the endpoint, and the steps that follow in their order.
4. ``http/routes/planning.py``: the body becomes a plan, with a lease (``artifacts.host``); its answer is awaited.
5. ``scoring/plan.py``: what travels from here to the device and back.
6. ``scoring/scorer.py``: expect, enter, encode, put, await.
7. ``scoring/tokenizing.py``: prompts become rows on threads.
8. ``scoring/queue.py``: where rows wait (``admission``, ``fairness`` and ``batching`` are its rules).
9. ``scoring/device.py``: the thread that runs them.
10. ``http/routes/answers.py``: a prediction as the contract writes it.

A job's chunk takes the same way from 5 to 9: ``jobs/chunks.py`` makes its plan.
"""

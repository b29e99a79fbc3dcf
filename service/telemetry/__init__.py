"""The server's logs, metrics and traces. It imports no other package except the errors' codes.

``logs`` has the closed list of events; ``metrics`` and ``answer_metrics`` count for Prometheus; ``tracing`` exports
spans. ``request_record`` and ``batch_report`` are the plain records that others fill. ``unfailing`` keeps what fails
here from failing what it watches, and ``event_loop`` watches the loop.
"""

"""Metrics, logs and traces. They watch, and fail nobody."""

"""Figures against a number, by one driver: ``curves``.

``python -m benchmarks.sweeps NAME`` measures and publishes one. ``driver`` keeps what was measured and writes page and
plot; ``curves`` says what the points are. Results lie in benchmarks/NAME.
"""

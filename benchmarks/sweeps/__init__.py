"""Figures against a number, by one driver: ``later`` and ``curves``.

``python -m benchmarks.sweeps NAME`` measures and publishes one. ``driver`` keeps what was measured and writes page and
plot; each of the two says what its points are. Results lie in benchmarks/NAME.
"""

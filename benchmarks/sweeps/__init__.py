"""Three figures against a number, by one driver: ``later``, ``curves`` and ``pruning``.

``python -m benchmarks.sweeps NAME`` measures and publishes one. ``driver`` keeps what was measured and writes page and
plot; each of the three says what its points are. Results lie in benchmarks/NAME.
"""

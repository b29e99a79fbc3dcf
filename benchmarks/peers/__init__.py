"""laplora beside its peers on the same weights and rows: ``python -m benchmarks.peers``.

Needs ``pip install -e '.[training,peers]'``. docs/peers.md says what was found.
"""

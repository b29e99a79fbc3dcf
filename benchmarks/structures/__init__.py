"""Structures of a posterior that only serve comparison: ``curvature``. docs/results.md records how close each came."""

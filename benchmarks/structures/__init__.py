"""How close each structure of the posterior comes to the exact one, on one set of Jacobians.

``gather`` fine-tunes a model and keeps its rows' Jacobians (``rows``), ``curvature`` has the structures that only
serve comparison, ``fits`` fits any on the rows, ``compare`` holds them against the exact posterior. ``publish`` writes
docs/results.md (``table``).
"""

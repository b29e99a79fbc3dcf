"""How fast, as ratios measured in one run: ``python -m benchmarks.speed``, or ``make bench``.

``__main__`` runs the ``parts`` and writes results.json and RESULTS.md; ``published`` writes the
sentences of other pages that state these figures.
"""

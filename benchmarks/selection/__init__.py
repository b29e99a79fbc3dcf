"""Which rows to label next: methods of ``laplora.selection`` compared on the evidence study's trained models.

``simulate`` chooses, labels and measures, without a pass through a model; ``page`` has the tables and the plot.
``python -m benchmarks.selection`` does what is missing.
"""

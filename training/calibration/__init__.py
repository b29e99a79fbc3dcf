"""What a run computes of its calibration rows, and measures on its test rows.

In the order of a fit: ``passes``, ``posteriors``, ``projected``, ``members`` (an ensemble's further adapters),
``distillation``, ``outputs`` (every predictive's moments) and ``calibrate``. ``label_sets``, ``fidelity`` and
``order_average`` measure.
"""

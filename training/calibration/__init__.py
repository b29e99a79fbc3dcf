"""What a run computes of its calibration rows, and measures on its test rows.

In the order of a fit: ``passes`` sums curvature over the training rows, ``posteriors`` fits one adapter's posterior and
its priors, ``projected`` takes a split through the model, ``members`` does both for an ensemble's further adapters,
``distillation`` makes the fast predictive's covariance, ``outputs`` collects every predictive's moments, and
``calibrate`` fits temperatures, thresholds and the recommendation. ``label_sets``, ``fidelity`` and ``order_average``
measure.
"""

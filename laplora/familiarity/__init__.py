"""How like the training rows an input is, by the hidden states of its forward pass.

``mahalanobis`` has one layer's distances, ``percentile`` what several layers say together, as a share of the
calibration rows; ``file`` keeps it with an artifact.
"""

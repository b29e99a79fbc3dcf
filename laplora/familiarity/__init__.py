"""How like the training rows an input is, by the hidden states and the logits of its forward pass.

``mahalanobis`` has one layer's distances, ``strangeness`` what several layers and the logits say together,
``percentile`` the share of the calibration rows that are at least as strange; ``file`` keeps it with an artifact.
"""

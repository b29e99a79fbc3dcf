"""How like the training rows an input is, by the hidden states and the logits of its forward pass.

``mahalanobis`` has one layer's distances, ``ood_score`` joins several layers and the logits,
``percentile`` the share of the calibration rows that are at least as far; ``file`` keeps it with an artifact.
"""

"""The Laplace posterior over LoRA weights: its curvature in several structures, and its file.

The default structure is two files: ``joint_core`` fits it, ``joint`` computes the predictive covariance J Sigma J^T.
``base`` says what every posterior answers, ``passes`` how a fit goes over the training rows. Then ``kronecker`` and
``eigen`` (block-diagonal structures), ``sketch`` (low rank and bases), ``subset`` (which matrices are covered),
``structures`` (all by name) and ``file``. ``many_classes`` fills in the covariance of
many contrasts from that of few directions. The prior precision is chosen in ``laplora.prior``.
"""

"""Choosing the prior precision of a posterior, one in all or one for each group of its blocks.

``search``, by validation, is the default wherever there are calibration rows: it takes the likelihood of their labels.
``evidence`` takes the training rows' marginal likelihood, and has the prior that a training loss stated. The prior
itself is ``laplora.posterior.base.Prior``.
"""

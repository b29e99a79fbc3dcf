"""Choosing the prior precision of a posterior, one in all or one for each group of its blocks.

``validation``, the default wherever there are calibration rows, takes the likelihood of their labels; ``evidence`` the
training rows' marginal likelihood, and has the prior that a training loss stated. ``search`` has what every choice
returns. The prior itself is ``laplora.posterior.base.Prior``.
"""

"""Choosing the prior precision of a posterior (``laplora.posterior.base.Prior``).

``validation``, the default, and ``leave_one_out`` take the likelihood of labels that a row's prediction did not see, by
``search``; ``evidence`` takes the training rows' marginal likelihood.
"""

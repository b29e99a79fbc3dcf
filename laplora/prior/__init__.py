"""Choosing the prior precision of a posterior.

``validation``, the default wherever there are calibration rows, and ``leave_one_out`` take the likelihood of labels
that a row's prediction did not see. ``search`` has what these two share, and what every choice returns. ``evidence``
takes the training rows' marginal likelihood, and has the prior that a training loss stated. The prior itself is
``laplora.posterior.base.Prior``.
"""

"""From a Gaussian over the class contrasts to class probabilities.

The Gaussian's covariance comes from ``laplora.posterior``. ``gaussian`` integrates one Gaussian, ``two_classes`` and
``label_draws`` do it for searches over two and over many classes; ``kinds`` has the predictives that an artifact can
serve, mixtures of such Gaussians.
What they average over: ``member_outputs`` (the passes through the model), ``member_adapters`` (weights that take the
adapter's place), ``dropout`` (fixed masks),
``order_average`` (orders of a question's options). ``distilled``, ``distilled_error`` and ``distilled_file`` predict
the covariance without Jacobians. ``cross_fitting`` and ``minimum`` serve what is fitted on the calibration rows.
"""

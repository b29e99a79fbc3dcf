"""From a Gaussian over the class contrasts to class probabilities.

``gaussian`` integrates one Gaussian, ``kinds`` mixes them into the predictives that an artifact can serve. What is
mixed: ``member_outputs``, ``member_adapters``, ``dropout``, ``order_average``. ``distilled`` predicts covariances
without Jacobians. ``cross_fitting`` and ``minimum`` serve what is fitted on the calibration rows.
"""

"""From a Gaussian over the class contrasts to class probabilities.

The Gaussian's covariance comes from ``laplora.posterior``. ``gaussian`` integrates one Gaussian, ``two_classes`` and
``label_draws`` do it for searches over two and over many classes; ``kinds`` has the predictives that an artifact can
serve. ``batch_outputs`` is the pass through the model, ``lora_weights`` is for weights that take the adapter's place.
``cross_fitting`` serves what is fitted on the calibration rows.
"""

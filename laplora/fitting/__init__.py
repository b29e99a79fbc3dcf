"""From a fine-tuned classifier and labelled rows to calibrated answers.

Read ``entry`` first (``laplora.fit``), then ``fit``: the steps in order. ``settings`` are its settings, ``rows`` how
it takes rows. Then, in the order in which they act: ``curvature`` and ``passes`` (over the training rows), ``priors``,
``projected`` (the calibration rows), ``outputs``, ``calibrate``. ``calibrated`` is the result, and ``saving`` writes
its artifact.
"""

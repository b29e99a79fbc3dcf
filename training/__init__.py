"""The offline jobs: ``python -m training JOB --config FILE``, from labelled rows to a calibrated artifact.

One job a file: ``run`` calls ``finetune``, ``fit_laplace`` (JOB ``fit``), ``evaluate`` and ``package`` in turn;
``shift`` measures a finished artifact on other rows; ``fit_adapter`` (``fit --adapter``) fits an adapter that was
trained elsewhere; ``condition`` teaches a finished artifact from further labels, ``suggest`` says which rows to label
next. No job but ``run`` knows another one. Below them, each importing only what stands further down:

- ``report``: tables and pages.
- ``calibration``: posteriors, predictives and thresholds.
- ``workspace``: the run's folder (``runs/NAME``), its files, provenance and terminal.
- ``config``: the YAML file as checked values.
- ``data``: known data sets, users' files, splits and corruptions.
"""

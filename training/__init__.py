"""The offline jobs: ``python -m training JOB --config FILE``, from labelled rows to a calibrated artifact.

One job a file: ``run`` calls ``finetune``, ``fit_laplace`` (JOB ``fit``), ``evaluate`` and ``package`` in turn;
``shift`` measures a finished artifact on other rows. Below them, each importing only what stands further down:
``report``, ``calibration``, ``workspace`` (the folder ``runs/NAME``), ``config`` and ``data``.
"""

"""The offline jobs: ``python -m training JOB --config FILE``, from labelled rows to a calibrated artifact.

One job a file: ``run`` calls ``finetune``, ``fit_laplace`` (JOB ``fit``), ``evaluate`` and ``package`` in turn, and no
other job knows another one. Below them, each importing only what stands further down: ``report``, ``calibration``,
``workspace`` (the run's folder), ``config`` (the YAML file) and ``data``.
"""

from laplora.execution.threads import brief_spins

brief_spins()

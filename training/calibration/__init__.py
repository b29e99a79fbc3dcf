"""The computations on a run's calibration rows, and the measurements on its test rows.

``cross_fit`` is the fit of an adapter that was trained on every label: ``fold_adapters`` are what calibrates it.
"""

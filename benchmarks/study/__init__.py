"""The calibration study: every alternative on many tasks and seeds, from one set of Jacobians each."""

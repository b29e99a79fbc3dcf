"""Calibration against optimizer steps and against the number of labels, as lines."""

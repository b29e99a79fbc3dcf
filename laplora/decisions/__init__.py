"""Decisions from probabilities: calibration, label sets, flags, and whether an answer is accepted or reviewed.

Fitted on a calibration split: ``temperature``, ``conformal`` (label sets), ``review`` (into the records of
``thresholds``). Applied: ``uncertainty``.
"""

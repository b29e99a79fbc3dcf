"""What is done with probabilities: calibrated, turned into label sets, flagged, accepted or reviewed.

Fitted on a calibration split: ``temperature``, ``conformal`` (label sets), ``review`` (into the records of
``thresholds``). Applied: ``uncertainty``.
"""

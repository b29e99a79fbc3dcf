"""What a run computes of its calibration rows: members, posteriors, thresholds, the distilled covariance."""

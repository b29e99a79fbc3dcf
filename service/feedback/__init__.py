"""True labels that come later, and the watch over calibration."""

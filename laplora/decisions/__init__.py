"""What is decided from probabilities: calibrators, prediction sets, flags, review, the recommendation."""

"""The alternatives of the study, computed from what the model gave."""

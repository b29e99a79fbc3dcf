"""The rows of a run: known data sets, the user's files, splits, corruptions."""

"""A decision model elsewhere, corrected by a user's labels: what that gains, and where it gains nothing."""

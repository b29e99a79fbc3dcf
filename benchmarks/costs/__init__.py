"""The costs of decisions by costs, beside other rules, and errors at target risks by label."""

"""The artifact: a folder that holds everything a served answer depends on, but for the base weights."""

"""The study's tables and plots, made from the published files alone."""

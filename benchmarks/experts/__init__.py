"""Experts alone and together on the development tasks: a record."""

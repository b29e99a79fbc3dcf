"""A run's pages for people.

``evaluation`` has the tables of the test rows, and ``page`` their report.
"""

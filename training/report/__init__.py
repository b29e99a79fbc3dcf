"""A run's pages for people.

``evaluation`` has the tables of the test rows, ``page`` their report, and ``shift`` that of a shift evaluation.
"""

"""Measurements beyond the tests; README.md names every table and the command that makes it.

``harness`` is what the commands share: subjects, a server process, timing, records and their page.
"""

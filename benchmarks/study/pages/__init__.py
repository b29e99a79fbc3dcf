"""The study's part of docs/results.md, made from the published file alone.

``tables`` and ``side_tables`` have a function for each table, ``plots`` the pictures; ``approximation_table`` and
``approximation_plot`` are the comparison of structures.
"""

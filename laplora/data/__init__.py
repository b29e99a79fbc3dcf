"""Labelled rows in a file: JSON Lines, CSV and Parquet.

Read ``records`` first (a file's rows, numbered, with every problem tied to its line), then ``labelled`` (rows as
examples of a task). ``lines`` and ``parquet`` read files of any size.
"""

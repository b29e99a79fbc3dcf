"""What people read of a run.

``evaluation`` has the tables of the test rows, ``page`` their report, and ``shift`` that of a shift evaluation.
"""

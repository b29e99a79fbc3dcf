"""What people read of a run.

``evaluation`` has the tables and plots of the test rows. The shift evaluation goes through ``shift_answers`` (what the
artifact answers to a set), ``shift`` (the record) and ``shift_tables`` (tables, plot and the documentation's section).
"""

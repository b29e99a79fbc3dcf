"""What people read of a run.

``evaluation`` has the tables and plots of the test rows. The shift evaluation goes through ``shift_answers``, ``shift``
(the record) and ``shift_tables``.
"""

"""Everything that needs a GPU, in one command of at most 30 minutes: ``make gpu``, and one file to send back.

Read ``steps`` first (a process with a limit for each step, and the report). ``models`` and ``served`` are what the
steps measure, ``publish`` takes a report into the repository.
"""

"""Whether inputs of another kind are noticed: familiarity beside other scores, and how often it is falsely alarmed.

``homes`` has the tasks and the other sets, ``models`` trains and runs, ``scores`` measures, ``page`` writes.
"""

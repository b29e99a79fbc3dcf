"""Which unlabelled rows to label next: a batch of rows that together tell most, under the joint posterior.

``candidates`` says what a selection sees of a row, ``greedy`` chooses by what labels are expected to tell, ``spread``
by distance alone. ``sketch`` has the rows' features, so that thousands of them fit in memory.
"""

"""Which unlabelled rows to label next: those whose label is expected to tell most about the weights.

``information`` says how much of an answer, ``suggest`` goes over a pool of rows.
"""

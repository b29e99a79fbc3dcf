"""Jobs go on, chunk by chunk. ``runner`` decides whose turn it is, ``run`` takes one job through; start there.

``chunks`` are read and scored; ``under_way`` and ``waiting`` keep count; ``ending`` ends a job.
"""

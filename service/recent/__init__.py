"""Inputs that POST /predict answered lately, so that POST /suggest/recent can choose among them. Off unless asked for.

``inputs`` is the store that the application has, of ``sample``, a uniform sample in bounded memory. Begin with
``inputs``. Nothing here writes to a disk, a log or a metric what an input says.
"""

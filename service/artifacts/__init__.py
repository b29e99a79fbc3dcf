"""Which artifacts answer: loaded, leased, swapped.

Start with ``host``, which the endpoints ask. ``candidates`` loads and verifies, within the time of ``bounded_load``,
by the calls of ``predictors``. ``conditioning`` makes new versions of what is loaded.
``shelf`` holds what is loaded. ``folders`` and ``listing`` look at the disk.
"""

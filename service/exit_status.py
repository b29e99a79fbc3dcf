"""The exit statuses of the server's process, for the program that restarts it."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit status of ``python -m service``.

    A restart policy of any status but 0 (``on-failure``, ``unless-stopped``) is the right one: a lost device comes
    back with a new process only.
    """

    #: Stopped by a signal, and everything that was open is answered.
    CLEAN = 0
    #: The artifact cannot be served, or the address cannot be listened on.
    START_FAILED = 1
    #: A setting that cannot be, a file of keys that cannot be used, or a path without an artifact.
    USAGE = 2
    #: The device failed while serving (EX_TEMPFAIL of sysexits.h): start again.
    DEVICE_FAULT = 75

"""Servers that start in a tenth of a second: forks of one process that has imported what they need.

What they do from their first line on, their signals, sockets and exit included, is that of a process of their own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

import pytest

HERE = Path(__file__).parent
#: What alone may differ in the environment of a fork: nothing that an import looks at.
LATE = ("LAPLORA_", "FAKE_", "AWS_", "NO_PROXY", "no_proxy", "OTEL_BSP_", "OTEL_EXPORTER_")


def can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether a command is a server's, and variables beside this process's are looked at after the imports."""
    known = command[0].endswith("fake_server.py") or list(command[:2]) in (["-m", "service"], ["-m", "laplora"])
    return known and all(name.startswith(LATE) for name in environment)


class Fork:
    """A process, with what the tests use of ``subprocess.Popen``.

    Attributes:
        returncode: the exit status, a signal's number below zero; None while it runs.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        log, writes = _warm().Pipe(duplex=False)
        process = _warm().Process(target=_run, args=(list(command), dict(environment), writes))
        process.start()
        # Its status can be read once, and is read by the thread below alone.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        writes.close()
        self.returncode: int | None = None
        self.pid = process.pid or 0
        self.stderr: TextIO = os.fdopen(os.dup(log.fileno()), encoding="utf-8")
        log.close()
        self._ended = threading.Event()
        threading.Thread(target=self._until_it_ends, args=(process,), daemon=True).start()

    def _until_it_ends(self, process: BaseProcess) -> None:
        process.join()
        self.returncode = process.exitcode
        self._ended.set()

    def poll(self) -> int | None:
        """Return ``returncode``."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, once there is one; TimeoutExpired after so many seconds."""
        if not self._ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired("a server", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


@cache
def _warm() -> multiprocessing.context.ForkServerContext:
    """Return what forks from the one process, which is started here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm_imports"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (HERE.parents[1], HERE))))
        forkserver.ensure_running()
    return context


def _run(command: list[str], environment: dict[str, str], log: Connection) -> None:
    os.dup2(log.fileno(), 2)
    log.close()
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    atexit._clear()
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()

"""The output of a job: lines of progress, and a bar with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from laplora.execution.progress import size
from training.workspace.launcher import launched_rank

Item = TypeVar("Item")


class Terminal:
    """How a fit of the library tells a job's user where it is (``laplora.execution.progress``)."""

    def say(self, line: str) -> None:
        say(line)

    def track(self, items: Sequence[Item], title: str) -> Iterator[Item]:
        yield from progress(items, title)


def say(line: str) -> None:
    """Print one line of progress to the terminal; of several processes the first one does."""
    if launched_rank() == 0:
        print(line, flush=True)  # noqa: T201  the jobs' user interface


def progress(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Yield items under a progress bar with the time left; about ten plain lines where there is no terminal."""
    total, done = sum(map(size, items)), 0
    if launched_rank():
        yield from items
        return
    if not sys.stdout.isatty():
        started, step, said = time.monotonic(), max(1, -(-total // 10)), 0
        for item in items:
            yield item
            done += size(item)
            if done - said >= step or done == total:
                spent, said = time.monotonic() - started, done
                say(f"{title}: {done}/{total}, {spent:.0f} s, {spent / done * (total - done):.0f} s left")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn()) as bar:
        task = bar.add_task(title, total=total)
        for item in items:
            yield item
            bar.advance(task, size(item))

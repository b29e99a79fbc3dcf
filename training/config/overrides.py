"""The option ``--set`` of the jobs."""

from __future__ import annotations

import argparse


def add_overrides(job: argparse.ArgumentParser, whose: str, example: str) -> None:
    """Give a command line the option ``--set``, which ``load_config`` takes as overrides.

    Args:
        whose: field it changes, in words; example: a value of the option.
    """
    job.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help=f"override one field{whose}, for example {example}; may be repeated",
    )

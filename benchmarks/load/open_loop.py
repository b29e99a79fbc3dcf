"""Half, all and twice of what a server can answer, sent without waiting for answers: what comes of it?

    python -m benchmarks.speed --only overload                      # a server of its own: what is published
    python -m benchmarks.load.open_loop --url URL --queue-rows 2048      # a server that runs, with its max_queue_rows

The protocol is that of ``benchmarks.load.overload``; what this command finds is printed, and published nowhere.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.harness.record import conditions_here
from benchmarks.load import overload


def main(arguments: list[str] | None = None) -> int:
    """Measure a server that runs and print the page; return the exit status, 1 where something asked is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load.open_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", required=True, help="of the server; its key, if any, in LAPLORA_TOKEN")
    parser.add_argument("--queue-rows", type=int, required=True, help="max_queue_rows of that server")
    parser.add_argument("--seconds", type=float, default=25.0, help="of twice the capacity, in each run (default: 25)")
    parser.add_argument("--runs", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--predictive", default="map", help="of the requests (map)")
    options = parser.parse_args(arguments)
    measured = conditions_here(arguments, module="benchmarks.load.open_loop").with_versions("aiohttp").measured
    seconds = options.seconds
    plan = overload.Plan(options.runs, capacity_s=0.6 * seconds, load_s=seconds, lighter_s=0.6 * seconds)
    runs = overload.measure(options.url.rstrip("/"), plan, predictive=options.predictive)
    head = f"`{measured['command']}`, {measured['date']}, commit of the clients {measured['commit']}."
    by_setting = {"clients on this machine": runs}
    print(overload.page(by_setting, head, queue_rows=options.queue_rows, predictive=options.predictive))
    return 0 if all(kept for _, kept in overload.verdicts(runs, options.queue_rows)) else 1


if __name__ == "__main__":
    sys.exit(main())

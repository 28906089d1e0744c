"""`python -m benchmarks [GROUP ...] [--smoke]`: ours beside the peers, each figure against its goal.

Writes `benchmarks/results.json`, `benchmarks/results.png` and (group `shared`) `benchmarks/propagation.png`.
Exit code 1 when a goal is missed (a stretch goal aside);
`--smoke` shows in less than a minute that the figures come out: it judges and writes nothing, and exits 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from . import peers, report
from .calls import call_group, failure_group, threads_group
from .collects import collect_group
from .fan_outs import fan_out_group
from .measure import Row
from .shared import shared_group
from .sizes import size_group
from .timed import timed_group

# A group is a function that yields its rows; a new one is one file and one line here.
GROUPS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "call": call_group,
    "threads": threads_group,
    "failure": failure_group,
    "timed": timed_group,
    "fan-out": fan_out_group,
    "shared": shared_group,
    "size": size_group,
    "collect": collect_group,
}
HERE = Path(__file__).resolve().parent


def main() -> int:
    """Runs the groups asked for and writes the table, `results.json` and `results.png`."""
    if sys.argv[1:2] == ["reclaim"]:
        from .reclaim import main as reclaim

        return reclaim(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="as --only")
    parser.add_argument("--only", action="append", default=[], choices=list(GROUPS), metavar="GROUP",
                        help=f"run this group (repeatable): {', '.join(GROUPS)}")  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; judges no goal")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}: there are {', '.join(GROUPS)}, and reclaim")
    peers.silence()
    if absent := peers.missing():
        print(f"not installed, so left out: {', '.join(absent)} (pip install -e '.[bench]')")
    rows: list[Row] = []
    for name in [*options.groups, *options.only] or GROUPS:
        for row in GROUPS[name](options.smoke):
            rows.append(row)
            print(report.line(row, judged=not options.smoke), flush=True)
    if options.smoke:
        print("smoke run: the figures come out, no goal is judged")
        return 0
    report.write_json(rows, HERE / "results.json")
    drawn = {
        "results.png": report.write_plot(rows, HERE / "results.png"),
        "propagation.png": report.write_spread(rows, HERE / "propagation.png"),
    }
    print("written:", *(f"benchmarks/{name}" for name in ("results.json", *(each for each in drawn if drawn[each]))))
    missed = [row for row in rows if row.reached is False and not row.stretch]
    print(f"{len(missed)} of {sum(row.goal is not None and not row.stretch for row in rows)} goals missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Random networks by seed: the certificate, twice is once, nothing is nothing, plans and sizes.

    python -m benchmarks.fuzz [--quick] [--out FILE] [--networks N] [--first SEED]

One thread. Where FILE is given it is written after every block of seeds, and blocks that are in
it are not run again. The properties are those of tests/network_properties.py; a failure names
its seed, and `tests.random_networks.seeded(seed)` is the network.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks import common

NETWORKS, QUICK_NETWORKS = 20_000, 20
BLOCK = 250
Row = dict[str, Any]


def blocks(first: int, networks: int) -> Iterator[range]:
    """The seeds in runs of at most BLOCK."""
    for start in range(first, first + networks, BLOCK):
        yield range(start, min(start + BLOCK, first + networks))


def run(seeds: range) -> Row:
    """Check the networks of these seeds."""
    from tests.network_properties import check_network
    from tests.random_networks import seeded

    total: Counter[str] = Counter()
    failures: list[Row] = []
    start = time.perf_counter()
    for seed in seeds:
        try:
            facts = check_network(seeded(seed).program, seed)
        except Exception as error:  # whatever goes wrong is what this looks for
            lines = str(error).splitlines() or [""]
            text = f"{type(error).__name__}: {lines[0]}"[:300]
            failures.append({"seed": seed, "error": text})
            common.console.print(f"seed {seed}: {text}")
            continue
        total["prunable"] += facts.groups > 0
        total["twice"] += facts.twice
        total["groups"] += facts.groups
        total["units"] += facts.units
        total["frozen"] += facts.frozen
    return {
        "first": seeds.start,
        "networks": len(seeds),
        "failed": len(failures),
        **{name: total[name] for name in ("prunable", "twice", "groups", "units", "frozen")},
        "seconds": round(time.perf_counter() - start, 2),
        "failures": failures,
    }


def show(rows: list[Row]) -> None:
    """The sums over all blocks."""
    names = ("networks", "failed", "prunable", "twice", "groups", "units", "frozen", "seconds")
    sums = {name: sum(row[name] for row in rows) for name in names}
    heads = ["networks", "failed", "prunable", "pruned twice", "groups", "units", "frozen", "s"]
    common.table("Random networks", heads, [[f"{sums[n]:.0f}" for n in names]], text=0)
    for failure in (f for row in rows for f in row["failures"]):
        common.console.print(f"seed {failure['seed']}: {failure['error']}")


def main() -> int:
    """Run what is missing, show all; 1 if a network failed."""
    arguments = common.parser(__doc__ or "", f"{QUICK_NETWORKS} networks")
    arguments.add_argument("--networks", type=int, metavar="N", help=f"default {NETWORKS}")
    arguments.add_argument("--first", type=int, default=0, metavar="SEED", help="default 0")
    given = arguments.parse_args()
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    count = given.networks or (QUICK_NETWORKS if given.quick else NETWORKS)
    rows = common.rows_of(given.out)
    done = {(row["first"], row["networks"]) for row in rows}
    for seeds in blocks(given.first, count):
        if (seeds.start, len(seeds)) in done:
            continue
        rows.append(run(seeds))
        if given.out is not None:
            common.write(given.out, common.envelope(rows))
    rows.sort(key=lambda row: row["first"])
    show(rows)
    common.finish(given.out, rows)
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())

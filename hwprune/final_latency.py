"""The latencies that a report ends with: dense and pruned side by side, here or on boards."""

from __future__ import annotations

from typing import Any

from hwprune.account_latency import add_latency
from hwprune.bench import Network, final_pair
from hwprune.remote.address import Boards
from hwprune.target import Target


def add_measured(
    report: dict[str, Any],
    boards: Boards | None,
    dense: Network,
    pruned: Network,
    target: Target,
) -> None:
    """Time both in turn and write what was found, with the board where it was one."""
    found = final_pair(boards, dense, pruned, target)
    add_latency(report, found.pair)
    if found.board:
        report["board"], report["warnings"] = found.board, [*found.warnings]

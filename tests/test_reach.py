"""A latency out of reach is refused after the narrowest and the full kernels alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwprune.budget import LATENCY, Budget
from hwprune.capture import capture
from hwprune.errors import BudgetError
from hwprune.prepare import prepare
from hwprune.price import extremes, required
from hwprune.provenance import provenance_of
from hwprune.reach import check_latency
from hwprune.table import LatencyTable
from hwprune.target import load_target
from tests.small_net import small_net


def test_out_of_reach_is_known_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path))
    target = load_target("host")
    program = capture(small_net(), (torch.zeros(1, 3, 32, 32),))
    prepared = prepare(program, target, 1)
    needed = set(required(prepared.sites, prepared.candidates))
    ends = {
        w
        for narrow, full, _ in extremes(prepared.sites, prepared.candidates)
        for w in (narrow, full)
    }
    assert ends < needed
    with LatencyTable.open(provenance_of(target)) as table:
        with pytest.raises(BudgetError, match=r"smallest\s+reachable"):
            check_latency(prepared, table, Budget(LATENCY, 1e-3, relative=False))
        assert not table.missing(ends, 1)
        assert set(table.missing(needed, 1)) == needed - ends
        done = check_latency(prepared, table, Budget(LATENCY, 1.0, relative=True))
    assert (done.measured, done.reused) == (0, len(ends))

"""Training in two processes: the gradient of both, one checkpoint, and stopping together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hwprune.recover import Processes, distributed, finetune
from tests.processes_train import CONFIG, batches, network

ROOT = Path(__file__).parents[1]


def test_one_process_alone() -> None:
    with distributed() as processes:
        assert processes == Processes(0, 1)
        assert list(processes.share([1, 2, 3])(0)) == [1, 2, 3]
    assert list(Processes(1, 2).share(lambda epoch: [epoch, 4, 5, 6, 7])(9)) == [4, 6]


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path) -> None:
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *words, "-m", "tests.processes_train", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank-{r}.pt", weights_only=True) for r in (0, 1)]
    alone = network()
    pairs = batches()
    joined = [
        tuple(torch.cat(both) for both in zip(pairs[i], pairs[i + 1], strict=True))
        for i in range(0, 8, 2)
    ]
    finetune(alone, joined, 4, CONFIG)
    for name, wanted in alone.state_dict().items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        assert torch.allclose(ranks[0]["weights"][name], wanted, atol=1e-6), name
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["module"].keys() == alone.state_dict().keys()
    assert saved["config"]["processes"] == 2
    errors = [(tmp_path / f"error-{r}.txt").read_text() for r in (0, 1)]
    assert "another process" in errors[0]
    assert "label 7 is out of range" in errors[1]

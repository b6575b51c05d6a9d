"""The script for the board, with an artifact of this machine's: only the target differs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hwprune.build import build
from hwprune.capture import capture
from hwprune.recover.images import picture_tensor
from hwprune.target import load_target
from tests.command_line import ROOT
from tests.small_net import small_net

Image = pytest.importorskip("PIL.Image")
SCRIPT = ROOT / "examples" / "deploy_arm.py"
TORCH_IS_NOT_THERE = (
    "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The script in a process in which torch cannot be imported."""
    command = [sys.executable, "-c", TORCH_IS_NOT_THERE, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_finds_what_pytorch_finds_without_torch(tmp_path: Path) -> None:
    net, rng = small_net(), np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8))
    image.save(tmp_path / "image.png")
    program = capture(net, (torch.randn(1, 3, 32, 32),), name="net")
    build(program, load_target("host"), 1).artifact.save(tmp_path / "artifact")
    done = script(tmp_path / "artifact", tmp_path / "image.png", "--top", 3, "--repeats", 2)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = net(picture_tensor(image, (3, 32, 32))[None])[0].softmax(0)
    lines = done.stdout.splitlines()
    for line, number in zip(lines, wanted.argsort(descending=True)[:3].tolist(), strict=False):
        assert line == f"{100 * float(wanted[number]):5.1f} %  class {number}"
    assert lines[3].endswith("2 inferences")

    missing = script(tmp_path / "artifact", tmp_path / "none.png")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    wrong = script(tmp_path, tmp_path / "image.png")
    assert "not an artifact directory" in wrong.stderr

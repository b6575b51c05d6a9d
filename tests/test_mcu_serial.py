"""Boards on a serial port: the emulator's, and scripted ones that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hwprune.emulator.program import SHIFT
from hwprune.errors import ArtifactError, HwpruneError, ToolchainError
from hwprune.mcu_build import compile_mcu
from hwprune.mcu_serial import run_on_board
from hwprune.mcu_vectors import model_id
from tests.command_line import Done


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial") / "tiny"
    compile_mcu(Tiny(), (torch.randn(2, 2, 8, 8),), out=out, target="cortex-m4")
    return out


@pytest.fixture(scope="module")
def emulated(folder: Path) -> Iterator[str]:
    """The port of an emulated board that runs the artifact's program."""
    subprocess.run(["make", "-C", folder, "serial-emulated"], check=True, capture_output=True)
    command = ["qemu-system-arm", "-M", "mps2-an386", "-display", "none", "-monitor", "none"]
    command += ["-serial", "pty", "-icount", f"shift={SHIFT}"]
    with subprocess.Popen(
        [*command, "-kernel", folder / "serial-emulated.elf"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "redirected to /dev/pts" in line
        yield line.split(" to ")[1].split()[0]
        process.kill()


@pytest.mark.slow
def test_the_emulated_board_answers(
    folder: Path, emulated: str, tmp_path: Path, run: Callable[..., Done]
) -> None:
    facts = run_on_board(folder, emulated, timeout_s=30)
    report = json.loads((folder / "report.json").read_text())
    assert facts["source"] == "emulator"
    assert "latency_ms" not in facts
    assert "cycles" not in facts
    assert facts["instructions"] == pytest.approx(report["instructions"], rel=0.02)
    assert sum(k["instructions"] for k in facts["kernels"]) == pytest.approx(
        facts["instructions"], abs=len(facts["kernels"])
    )
    assert [k["name"] for k in facts["kernels"]] == [k["name"] for k in report["kernels"]]
    assert facts["equal"] == facts["test_vectors"] == 4
    again = tmp_path / "rows.json"
    done = run("board", folder, "--port", emulated, "--out", again)
    assert done.status == 0, done.err
    assert "(emulator)" in done.out
    second = json.loads(again.read_text())
    # The host says when a run begins: SysTick's phase is another, and it may wrap meanwhile.
    for first, other in zip(facts["kernels"], second["kernels"], strict=True):
        assert abs(first["instructions"] - other["instructions"]) <= 60, first


@pytest.fixture
def scripted() -> Iterator[Callable[[str], str]]:
    """A port behind which somebody answers the first "run" with a text."""
    ends: list[int] = []
    threads: list[threading.Thread] = []

    def make(answer: str) -> str:
        board, host = os.openpty()
        tty.setraw(host)
        ends.extend((board, host))

        def serve() -> None:
            heard = b""
            while b"run\n" not in heard:
                heard += os.read(board, 64)
            os.write(board, answer.encode())

        if answer:
            threads.append(threading.Thread(target=serve, daemon=True))
            threads[-1].start()
        return os.ttyname(host)

    yield make
    for thread in threads:
        thread.join(5)
    for end in ends:
        os.close(end)


def answer(folder: Path, kind: str = "device", clock: int = 0) -> str:
    number = model_id((folder / "model.c").read_text())
    return f"noise\nhwprune 1 {kind} {clock} {number}\n"


def kernels(folder: Path) -> str:
    names = json.loads((folder / "report.json").read_text())["kernels"]
    return "".join(f"kernel {i} ticks {1000 * (i + 1)}\n" for i in range(len(names)))


def test_a_device_has_cycles_and_time(folder: Path, scripted: Callable[[str], str]) -> None:
    text = kernels(folder) + "model ticks 6000\nequal 4 of 4\nend\n"
    facts = run_on_board(folder, scripted(answer(folder) + text), timeout_s=5)
    assert (facts["source"], facts["cycles"]) == ("device", 6000)
    assert facts["latency_ms"] == pytest.approx(6000 / 120e3)  # the target's 120 MHz
    facts = run_on_board(folder, scripted(answer(folder, clock=10**6) + text), timeout_s=5)
    assert facts["latency_ms"] == pytest.approx(6.0)
    assert facts["kernels"][1]["cycles"] == 2000


def test_boards_that_misbehave_are_one_message(
    folder: Path, scripted: Callable[[str], str]
) -> None:
    total = "model ticks 60\n"
    limits = {"no board answered within 1 s": 1, "no board answered": 1}
    limits["fell silent for 2 s in the middle"] = 2
    for said, message in (
        ("", "no board answered within 1 s"),
        ("hello\n", "no board answered"),
        ("hwprune 2 device 0 7\n", "speaks version 2"),
        ("hwprune 1 device 0 7\n", "runs another network"),
        (answer(folder) + total, "fell silent for 2 s in the middle"),
        (answer(folder) + "fault 3\n", "crashed"),
        (answer(folder) + total + "equal 4 of 4\nend\n", "counted 0 kernels of"),
        (answer(folder) + "model ticks many\nend\n", "said"),
        (answer(folder) + kernels(folder) + total + "equal 3 of 4\nend\n", "1 of 4 outputs"),
    ):
        with pytest.raises(HwpruneError, match=message):
            run_on_board(folder, scripted(said), timeout_s=limits.get(message, 30))


def test_what_is_no_port_or_no_artifact(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="/nonexistent/tty: cannot be opened"):
        run_on_board(folder, "/nonexistent/tty")
    with pytest.raises(ToolchainError, match="cannot be opened"):
        run_on_board(folder, "nowhere://x")
    with pytest.raises(ArtifactError, match="no artifact for a microcontroller"):
        run_on_board(tmp_path, "/nonexistent/tty")


def test_without_pyserial_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    with pytest.raises(ToolchainError, match=r"pyserial is not installed.*hwprune\[serial\]"):
        run_on_board(folder, "/dev/null")

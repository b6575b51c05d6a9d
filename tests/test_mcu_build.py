"""From a network to a folder for a board: the command, the artifact, what it refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples import tiny
from hwprune.emulator.toolchain import find_tool
from hwprune.errors import BudgetError, HwpruneError, LoweringError, TargetError
from hwprune.lower.mcu.model import lower_to_c
from hwprune.mcu_build import McuResult, compile_mcu
from hwprune.mcu_price import network
from hwprune.mcu_program import run_on_emulator
from hwprune.target import load_target
from tests.command_line import Done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mcu") / "ds_cnn"


@pytest.fixture(scope="module")
def built(folder: Path) -> McuResult:
    inputs = torch.randn(6, *tiny.SHAPES["ds_cnn"][1:], generator=torch.Generator().manual_seed(1))
    return compile_mcu(
        tiny.ds_cnn(), (inputs[:2],), out=folder, target="cortex-m4", calibrate=inputs, name="kws"
    )


def make(folder: Path, goal: str) -> str:
    done = subprocess.run(
        ["make", "-C", str(folder), goal], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_artifact_runs_and_equals_the_reference(built: McuResult, folder: Path) -> None:
    assert "equal 4 of 4" in make(folder, "run")
    assert "equal 4 of 4" in make(folder, "host")
    make(folder, "device")
    report = json.loads((folder / "report.json").read_text())
    assert report["bit_exact"] is True
    assert (report["instructions_source"], report["latency_source"]) == ("emulator", "model")
    assert report["calibration"] == "6 inputs given"
    assert report["arena_bytes"] == report["arena_lower_bound_bytes"] == 16512
    assert report["instructions"] == built.run.instructions
    assert f"{report['latency_ms']:.2f} ms" in (folder / "README.md").read_text()
    assert "@" not in (folder / "README.md").read_text()


@pytest.mark.slow
def test_a_wrong_result_is_noticed(built: McuResult, folder: Path) -> None:
    vectors = folder / "vectors.h"
    text = vectors.read_text()
    made = int(built.vectors.outputs[0][0, 0])
    begin = text.index("vector_output")
    spoiled = text[begin:].replace(f"{{{made},", f"{{{made ^ 1},", 1)
    vectors.write_text(text[:begin] + spoiled)
    try:
        done = subprocess.run(["make", "-C", folder, "run"], capture_output=True, text=True)
        assert done.returncode != 0
        assert "differs 0" in done.stdout
        assert "equal 3 of 4" in done.stdout
    finally:
        vectors.write_text(text)


@pytest.mark.slow
def test_instructions_for_a_multiply_accumulate(built: McuResult, tmp_path: Path) -> None:
    run = run_on_emulator(
        built.model, load_target("cortex-m4"), built.vectors, tmp_path, trace=True
    )
    assert run.instructions == pytest.approx(built.run.instructions, rel=1e-3)
    costs: dict[str, list[float]] = {}
    for call, count in zip(built.model.calls, run.by_call, strict=True):
        if call.macs > 10_000:
            costs.setdefault(call.rule, []).append(count / call.macs)
    assert len(costs["mcu.depthwise"]) == 4
    assert max(costs["mcu.depthwise"]) <= 3.2
    assert sorted(costs["mcu.conv.2x4"])[-2] <= 1.1  # the four 1x1 convolutions
    assert max(costs["mcu.conv.2x4"]) <= 1.45  # 10x4 over one channel


def test_the_header_is_for_c_plus_plus_too(built: McuResult, folder: Path, tmp_path: Path) -> None:
    text = '#include "model.h"\nint8_t x[HWPRUNE_MODEL_INPUT_SIZE], y[HWPRUNE_MODEL_OUTPUT_SIZE];\n'
    text += "int main() { hwprune_model_run(x, y); return 0; }\n"
    (tmp_path / "use.cpp").write_text(text)
    model = tmp_path / "model.o"
    strict = ["-Wall", "-Wextra", "-Werror", f"-I{folder}"]
    subprocess.run(["gcc", "-O0", *strict, "-c", folder / "model.c", "-o", model], check=True)
    command = ["g++", *strict, tmp_path / "use.cpp", model, "-lm", "-o", tmp_path / "use"]
    subprocess.run(command, check=True)
    subprocess.run([tmp_path / "use"], check=True)
    names = subprocess.run(["nm", "-u", model], capture_output=True, text=True, check=True)
    undefined = {line.split()[-1] for line in names.stdout.splitlines()}
    assert undefined <= {"memcpy", "memset", "ceilf", "floorf", "_GLOBAL_OFFSET_TABLE_"}


def test_it_compiles_as_projects_compile_it(built: McuResult, folder: Path) -> None:
    target = load_target("cortex-m4")
    assert target.mcu is not None
    for options in (["-O3"], ["-Os"], ["-O0"], ["-Og", "-DHWPRUNE_HALVES"]):
        command = [find_tool(target, "gcc"), *target.mcu.flags, *options, "-std=c11", "-Wall"]
        command += ["-Wextra", "-Werror", "-c", str(folder / "model.c"), "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (options, done.stderr)


class Small(nn.Module):
    """Two convolutions whose first result is 16 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x))).mean((2, 3))


@pytest.mark.slow
def test_the_command_prunes_and_compiles(tmp_path: Path, run: Callable[..., Done]) -> None:
    small = tmp_path / "small.pt2"
    torch.manual_seed(0)
    program = torch.export.export(Small().eval(), (torch.randn(1, 2, 32, 32),))
    torch.export.save(program, small)
    out = tmp_path / "out"
    words = ("compile", small, "--target", "cortex-m0plus", "--macs", "60%", "--out", out)
    done = run(*words, "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    dense = 32 * 32 * (2 * 9 * 16 + 16 * 4)
    assert 0.4 * dense < report["macs"] <= 0.6 * dense
    assert report["calibration"].startswith("32 random normal inputs")
    assert report["bit_exact"] is True
    assert (out / "model.c").is_file()


def test_what_does_not_fit_says_by_how_much(built: McuResult) -> None:
    m4 = load_target("cortex-m4")
    with pytest.raises(
        BudgetError, match=r"16512 bytes of SRAM, cortex-m4 has 16000: 512 too many"
    ):
        lower_to_c(built.model.graph, replace(m4, sram_bytes=16000))
    with pytest.raises(BudgetError, match=r"bytes of flash, cortex-m4 has 9000"):
        lower_to_c(built.model.graph, replace(m4, flash_bytes=9000))


def test_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no microcontroller"):
        compile_mcu(Small(), out=tmp_path / "a", target="x86-64-v3")
    assert not (tmp_path / "a").exists()


def test_a_difference_writes_nothing(
    built: McuResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(
        built.vectors, outputs=tuple(np.bitwise_xor(o, 1) for o in built.vectors.outputs)
    )
    with pytest.raises(LoweringError, match="4 of 4 outputs on cortex-m4 differ"):
        network.emulate(built.model, load_target("cortex-m4"), wrong)
    monkeypatch.setattr(network, "find_emulator", _absent)
    with pytest.raises(HwpruneError, match="absent"):
        compile_mcu(Small(), out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def _absent() -> str:
    raise HwpruneError("absent")

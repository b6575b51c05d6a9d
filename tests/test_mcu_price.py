"""Prices of microcontrollers: kernels as rows, sizes over widths, SRAM by step, budgets."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from examples import tiny
from hwprune.budget import FLASH, SRAM, parse_budget
from hwprune.capture import Program, capture
from hwprune.errors import BudgetError, HwpruneError, LoweringError
from hwprune.forms import Forms
from hwprune.lower.mcu.model import lower_to_c
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.mcu_build import compile_mcu
from hwprune.mcu_price import measure, search
from hwprune.mcu_price.bounds import check_device
from hwprune.mcu_price.kernels import example, workload_of
from hwprune.mcu_price.measure import kernel_of, measure_kernels, run_kernels
from hwprune.mcu_price.memory import memory_of
from hwprune.mcu_price.network import build_network
from hwprune.mcu_price.prepared import McuPrepared, prepare_mcu
from hwprune.mcu_price.sites import sized
from hwprune.mcu_program import make_vectors, random_inputs, run_on_emulator
from hwprune.model_ref import example_inputs
from hwprune.prepare import carry_out
from hwprune.price import latency_costs, required
from hwprune.progress import Clock
from hwprune.provenance import provenance_of
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.table import LatencyTable
from hwprune.target import load_target
from tests.command_line import Done, refused
from tests.quantize_networks import NETWORKS, batch

M4 = load_target("cortex-m4")


class Net(nn.Module):
    """A stem, a residual block, a depthwise and a grouped layer, a concatenation, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 24, 1)
        self.split = nn.Conv2d(24, 24, 3, padding=1, groups=3)
        self.other = nn.Conv2d(16, 8, 1)
        self.hidden = nn.Linear(32 * 4, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.body(x))
        y = torch.relu(self.split(torch.relu(self.point(torch.relu(self.deep(x))))))
        z = torch.cat([y, torch.sigmoid(self.other(x))], 1)
        z = nn.functional.max_pool2d(z, 4)
        return self.head(torch.relu(self.hidden(z.flatten(1))))


@pytest.fixture(scope="module")
def ready() -> McuPrepared:
    torch.manual_seed(0)
    program = capture(Net().eval(), (torch.randn(2, 3, 16, 16),), name="net")
    return prepare_mcu(program, M4, Forms())


@pytest.fixture(scope="module")
def widths(ready: McuPrepared) -> dict[str, int]:
    rng = np.random.default_rng(3)
    return {g: int(rng.choice(c[:-1])) for g, c in ready.prepared.candidates.items()}


@pytest.fixture(scope="module")
def pruned(ready: McuPrepared, widths: dict[str, int]) -> Quantized:
    return quantize_program(smaller(ready, widths), torch.randn(8, 3, 16, 16))


def smaller(ready: McuPrepared, widths: dict[str, int]) -> Program:
    kept = {name: tuple(range(width)) for name, width in widths.items()}
    return carry_out(ready.prepared, kept)[1]


def workloads(quantized: Quantized) -> list[Workload]:
    graph = quantized.graph
    return [
        workload_of(op, [graph.by_name[n] for n in op.inputs], graph.by_name[op.output])
        for op in graph.operators
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_workload_makes_an_operator_of_itself(name: str) -> None:
    make, shape = NETWORKS[name]
    inputs = batch(shape, 4)
    program = capture(make(), (inputs[:2],), name=name)
    for workload in workloads(quantize_program(program, inputs)):
        made = example(workload)
        assert workload_of(made.operator, made.inputs, made.output) == workload
        assert Workload.from_key(workload.key()) == workload
        assert kernel_of(workload, M4).arguments


def test_what_has_no_price_is_named() -> None:
    tensor = TensorSpec((1, 4), "int8")
    with pytest.raises(LoweringError, match="'wavelet' is no operator"):
        example(Workload("wavelet", (tensor,), tensor))


def test_every_group_reaches_its_kernels(ready: McuPrepared) -> None:
    assert not any(site.dense for site in ready.sized.kernels)
    moved = {g for site in ready.sized.kernels for axis in site.axes for g, _ in axis.terms}
    assert moved == set(ready.prepared.candidates)


def test_sites_are_the_kernels_of_the_pruned_network(
    ready: McuPrepared, widths: dict[str, int], pruned: Quantized
) -> None:
    again = sized(ready.quantized, ready.prepared.coupling).sites
    found = [None if site is None else site.workload(widths) for site in again]
    made = [w if s is not None else None for w, s in zip(workloads(pruned), again, strict=True)]
    assert found == made


def test_memory_is_that_of_the_pruned_network(
    ready: McuPrepared, widths: dict[str, int], pruned: Quantized
) -> None:
    memory = memory_of(ready)
    for quantized, chosen in ((ready.quantized, ready.prepared.full), (pruned, widths)):
        model = lower_to_c(quantized.graph, M4)
        assert memory.arena_bytes(chosen) == model.storage.memory.least_bytes
        assert memory.peak(chosen).name == model.peak
        constants = sum(call.constant_bytes for call in model.calls)
        assert memory.constant_bytes(chosen) == pytest.approx(constants, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_a_kernel_alone_executes_what_it_does_in_the_network(
    ready: McuPrepared, core: str, tmp_path: Path
) -> None:
    target = load_target(core)
    model = lower_to_c(ready.quantized.graph, target)
    vectors = make_vectors(model, random_inputs(model, 1))
    traced = run_on_emulator(model, target, vectors, tmp_path, trace=True)
    kernels = [kernel_of(site.call.workload, target) for site in ready.sized.kernels]
    phases = run_kernels(kernels, target)
    for site, inside, alone in zip(ready.sized.kernels, traced.by_call, phases, strict=True):
        # C bakes zero points and multipliers into kernels of single values: an instruction each.
        each = 0 if site.params else int(np.prod(site.call.workload.output.shape))
        assert inside == pytest.approx(alone.instructions, rel=0.01, abs=40 + each), site.call.name


@pytest.mark.slow
def test_rows_are_measured_once_and_kept_when_a_run_is_killed(
    ready: McuPrepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = required(ready.sized.kernels, ready.prepared.candidates)[:6]
    tensor = TensorSpec((1, 4), "int8")
    strange = Workload("wavelet", (tensor,), tensor)
    monkeypatch.setattr(measure, "BATCH", 3)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        raise KeyboardInterrupt

    provenance = provenance_of(M4)
    with LatencyTable(tmp_path / "t.sqlite", provenance) as table:
        with pytest.raises(KeyboardInterrupt):
            measure_kernels((*needed, strange), M4, table, stop)
    assert seen == [(3, 7)]
    with LatencyTable(tmp_path / "t.sqlite", provenance) as table:
        done = measure_kernels((*needed, strange), M4, table)
        assert (done.reused, done.measured, done.failed) == (3, 4, (strange,))
        again = measure_kernels((*needed, strange), M4, table)
        assert (again.reused, again.measured) == (7, 0)
        rows = [row for row in table.rows() if not row.failure]
    assert {row.source for row in rows} == {"emulator"}
    assert all("cycles by the model of cortex-m4" in row.versions for row in rows)
    assert provenance.toolchain.startswith("arm-none-eabi-gcc 1")


def test_budgets_of_memory_are_read() -> None:
    for text, size in (("64KiB", 65536), ("1MiB", 1 << 20), ("2 kB", 2000), ("5000", 5000)):
        budget = parse_budget(text, SRAM)
        assert budget is not None
        assert budget.absolute(1e9) == size
    assert str(parse_budget("64KiB", FLASH)) == "64 KiB"
    assert str(parse_budget("50%", FLASH)) == "50%"
    with pytest.raises(BudgetError, match=r"flash.*no unit of flash"):
        parse_budget("64KiBs", FLASH)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("small") / "small.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(1, 3, 16, 16),)), file)
    return file


@pytest.mark.slow
def test_the_command_meets_three_budgets(
    small: Path, tmp_path: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = search._Search._learn
    turns: list[Any] = []

    def forget_once(self: Any, *given: Any) -> None:
        """Before the first turn nothing is known of code, stack and the sum of the kernels."""
        if turns:
            learn(self, *given)

    build = search._Search._solve
    monkeypatch.setattr(search._Search, "_learn", forget_once)
    monkeypatch.setattr(search._Search, "_solve", lambda self: [turns.append(1), build(self)][1])
    out = tmp_path / "out"
    budgets = ("--latency", "95%", "--sram", "90%", "--flash", "85%", "--branches")
    done = run("compile", small, "--target", "cortex-m4", *budgets, "--out", out, "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["turns"] > 1
    dense, pruned = report["dense"], report["pruned"]
    for name, share in (("sram_bytes", 0.9), ("flash_bytes", 0.85), ("latency_ms", 0.95)):
        assert pruned[name] == report[name] <= share * dense[name], name
    assert report["kernel_rows"]["source"] == "emulator"
    assert 0 < pruned["top1_agreement"] <= 1
    made = subprocess.run(
        ["make", "-C", out, "run"], capture_output=True, text=True, timeout=120, check=False
    )
    assert "equal 4 of 4" in made.stdout, made.stderr


@pytest.mark.slow
def test_what_cannot_be_met_says_by_how_much(small: Path, tmp_path: Path) -> None:
    def compiled(**budgets: str) -> None:
        compile_mcu(small, out=tmp_path / "out", budgets=budgets)

    with pytest.raises(BudgetError, match=r"sram: .* smallest reachable: \d+ too many .*while"):
        compiled(sram="5000")
    with pytest.raises(BudgetError, match=r"flash: .* too many \(\d+ of them code, of the weights"):
        compiled(flash="3kB")
    with pytest.raises(BudgetError, match=r"latency: .* smallest reachable .*% of the dense"):
        compiled(latency="10us")
    assert not (tmp_path / "out").exists()


def test_a_module_may_say_what_goes_in() -> None:
    (inputs,) = example_inputs([], tiny.ds_cnn())
    assert inputs.shape == tiny.SHAPES["ds_cnn"]
    (inputs,) = example_inputs(["2,1,49,10"], tiny.ds_cnn())
    assert inputs.shape == (2, 1, 49, 10)


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 16, 16),))
    with pytest.raises(HwpruneError, match=r"batches of exactly 2.*dynamic batch"):
        compile_mcu(program, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_requests_are_refused_at_once(
    small: Path, tmp_path: Path, run: Callable[..., Done]
) -> None:
    def compiled(*words: str) -> Done:
        return run("compile", small, "--out", tmp_path / "out", *words)

    m4 = ("--target", "cortex-m4")
    refused(compiled("--sram", "64KiB"), "sram", "only microcontrollers")
    refused(compiled(*m4, "--flash", "much"), "flash", "not a budget")
    refused(compiled(*m4, "--sram", "0"), "sram", "leaves nothing")
    refused(compiled(*m4, "--latency", "5"), "latency", "no unit")
    refused(compiled(*m4, "--sram", "64KiB", "--plan", "p.json"), "a plan and a budget exclude")
    refused(compiled(*m4, "--latency", "5ms", "--rpc", "localhost:9"), "boards", "no RPC server")
    refused(run("profile", small, *m4, "--threads", "2"), "threads", "one core")
    assert not (tmp_path / "out").exists()


def test_a_network_that_does_not_fit_the_device_says_what_to_do(ready: McuPrepared) -> None:
    network = build_network(ready.prepared.program, M4, torch.randn(4, 3, 16, 16))
    tiny = replace(M4, sram_bytes=network.sram_bytes - 100)
    with pytest.raises(BudgetError, match=r"100 too many \(at most while .* runs\).*--sram"):
        check_device(network, tiny)
    with pytest.raises(BudgetError, match=r"7 too many \(hidden|linear .* most of the weights\)"):
        check_device(network, replace(M4, flash_bytes=network.flash_bytes - 7))
    check_device(network, replace(M4, sram_bytes=network.sram_bytes))


def test_a_network_too_large_for_the_board_has_the_limits_of_the_device(ready: McuPrepared) -> None:
    def limits(text: str) -> dict[str, float]:
        budget = parse_budget(text, SRAM)
        assert budget is not None
        asked = search.Asked({}, {SRAM: budget}, torch.zeros(1), lambda outcome: outcome.program)
        found = search._Search(ready, asked, Clock())
        found._limit_memory(None)
        return found.limits

    assert limits("64KiB") == {SRAM: 65536, FLASH: M4.flash_bytes}
    assert limits("8MiB") == {SRAM: M4.sram_bytes, FLASH: M4.flash_bytes}
    with pytest.raises(BudgetError, match=r"sram: 50% of what does not run .*give it in KiB"):
        limits("50%")


def test_prices_are_inside_what_was_measured(ready: McuPrepared, tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite", provenance_of(M4)) as table:
        with pytest.raises(HwpruneError, match="has no row for this kernel"):
            latency_costs(ready.sized.kernels, ready.prepared.candidates, table, 1)

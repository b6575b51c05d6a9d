"""int8 kernels on CPUs: every operator and whole networks, bit for bit the integer reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from examples import tiny
from examples.models import build
from hwprune.capture import capture
from hwprune.errors import LoweringError
from hwprune.lower.int8 import machine
from hwprune.lower.int8.layout import padded
from hwprune.lower.int8.machine import Machine, machine_of
from hwprune.lower.int8.network import lower_int8
from hwprune.lower.int8.scaling import Channels, Finish
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.quantize import graph as ops
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.graph import IntegerGraph, IntegerTensor
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.target import load_target
from tests.int8_helpers import differing, integers_alone, lowered_bench, wide, x86_targets
from tests.quantize_networks import Reader, branches
from tests.test_mcu_kernels import Bench, convolutions, depthwise, others

TARGETS = x86_targets()
EVERYTHING = (convolutions, depthwise, others, wide)


def quantized(model: nn.Module, shape: tuple[int, ...]) -> Quantized:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, *shape[1:], generator=generator)
    return quantize_program(capture(model, (images[:1],)), images, QuantConfig("minmax"))


def exact(made: Quantized, target: str, threads: int = 1) -> bool:
    lowered = lower_int8(made.graph, load_target(target), threads)
    shape = made.folded.inputs[0].shape
    for seed in range(2):
        image = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        pairs = zip(made(image), lowered.run(image.numpy()), strict=True)
        if not all(np.array_equal(wanted, found) for wanted, found in pairs):
            return False
    return True


SLOW = ("vnni-256", "x86-64-v4", "cortex-a72")


def some_slow(names: Iterable[str]) -> list[object]:
    """Parameters, of which some take more than five seconds and say nothing new every time."""
    return [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in names]


@pytest.mark.parametrize("name", some_slow(TARGETS))
def test_every_operator_is_the_reference_bit_for_bit(name: str) -> None:
    bench, lowered = lowered_bench(EVERYTHING, TARGETS[name])
    assert differing(bench.graph(), lowered) == []


@pytest.mark.parametrize("core", some_slow(["cortex-a76", "cortex-a72"]))
def test_every_operator_under_an_emulator(core: str) -> None:
    bench, lowered = lowered_bench(EVERYTHING, load_target(core))
    units = {reason.split(",")[0] for rule, reason in lowered.rules.values() if "conv2d" in rule}
    assert units == {"sdot" if core == "cortex-a76" else "smlal"}
    assert differing(bench.graph(), lowered) == []


def test_threads_share_every_kernel() -> None:
    bench, lowered = lowered_bench((convolutions, others), load_target("host"), threads=2)
    assert differing(bench.graph(), lowered) == []


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "mobilenet", "autoencoder"])
def test_tiny_networks(name: str) -> None:
    assert exact(quantized(getattr(tiny, name)(), tiny.SHAPES[name]), "host")


@pytest.mark.parametrize("make", [branches, lambda: Reader().eval()], ids=["branches", "reader"])
def test_networks_of_every_operator(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    channels, size = (3, 17) if make is branches else (2, 5)
    assert exact(quantized(make(), (1, channels, size, size)), "host", threads=2)


@pytest.mark.slow
def test_a_network_of_torchvision() -> None:
    made = quantized(build("mobilenet_v2"), (1, 3, 64, 64))
    assert exact(made, "host")


def test_a_network_for_another_core() -> None:
    made = quantized(tiny.resnet8(), tiny.SHAPES["resnet8"])
    lowered = integers_alone(made.graph, load_target("cortex-a76"))
    assert differing(made.graph, lowered) == []


def test_an_operator_without_kernel_is_named() -> None:
    x, y = IntegerTensor("x", (1, 4), "float32"), IntegerTensor("y", (1, 4), "float32")
    spec = TensorSpec((1, 4))
    work = Workload("softmax", (spec,), spec)
    op = ops.Float("soft", ("x",), "y", "model.py:3", workload=work, params=())
    graph = IntegerGraph("net", (x, y), (op,), ("x",), ("y",))
    with pytest.raises(LoweringError, match=r"model\.py:3: there is no int8 kernel for float"):
        lower_int8(graph, load_target("host"), 1)


def test_only_cpus() -> None:
    with pytest.raises(LoweringError, match="no int8 kernels for cuda"):
        machine_of(load_target("nvidia-h200"))


def test_no_other_architecture() -> None:
    facts = {"kind": "llvm", "mtriple": "riscv64-linux-gnu"}
    other = replace(load_target("cortex-a72"), name="board", tvm_target=facts, isa=())
    with pytest.raises(LoweringError, match="no int8 kernels for riscv64"):
        machine_of(other)


def test_no_instruction_that_llvm_was_not_given() -> None:
    core = load_target("cortex-a76")
    plain = replace(core, tvm_target={**core.tvm_target, "mcpu": "cortex-a72", "mattr": ["+neon"]})
    assert "asimddp" in plain.isa
    assert machine_of(plain).unit == "smlal"


def test_what_a_core_multiplies_with() -> None:
    cores = ("cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "neoverse-n1", "x86-64-v3")
    units = [machine_of(load_target(core)).unit for core in cores]
    assert units == ["smlal", "sdot", "smlal", "sdot", "sdot", "vpmaddwd"]
    assert machine_of(load_target("x86-64-v4")) == Machine("vpmaddwd", 16, 2, 128)
    for name in ("vnni-256", "host"):
        if "avx512_vnni" in load_target("host").isa:
            assert machine_of(TARGETS[name]).unit == "vpdpbusd"
    assert machine.VNNI[8] == ("avx512_vnni", "avx_vnni")


def test_rows_are_filled_up_to_whole_vectors() -> None:
    assert [padded(c) for c in (1, 3, 4, 5, 8, 9, 16, 17, 32)] == [4, 4, 4, 8, 8, 16, 16, 32, 32]


def test_reshapes_that_move_nothing_launch_nothing() -> None:
    bench = Bench(0)
    x, y, z = bench.tensor(2, 3, 16), bench.tensor(6, 16), bench.tensor(8, 12)
    bench.add(ops.Reshape, [x], y)
    bench.add(ops.Reshape, [x], z)  # rows of another length, which are filled up
    lowered = integers_alone(bench.graph(), load_target("host"))
    launched = [call.workload.op for call in lowered.calls]
    assert launched.count("int8_reshape") == 1
    assert differing(bench.graph(), lowered) == []


def test_one_function_for_kernels_that_are_alike() -> None:
    bench = Bench(0)
    bench.conv((4, 4, 16), 16, (1, 1))
    bench.conv((4, 4, 16), 16, (1, 1))
    first, second = bench.operators
    x, y = bench.tensors[0], bench.tensors[1]
    tensors = tuple(
        IntegerTensor(t.name, t.shape, t.dtype, t.scale, (x if i % 2 == 0 else y).zero_point)
        for i, t in enumerate(bench.tensors)
    )
    graph = IntegerGraph("n", tensors, (first, second), bench.graph().inputs, bench.graph().outputs)
    lowered = integers_alone(graph, load_target("host"))
    convs = [c.workload for c in lowered.calls if c.workload.op == "int8_conv2d"]
    assert len(convs) == 2
    assert len(set(convs)) == 1  # with weights, and multipliers, of their own
    assert differing(graph, lowered) == []


def test_sums_near_the_end_of_32_bits_are_scaled_as_defined() -> None:
    bench = Bench(0)
    bench.conv((2, 2, 4), 3, (1, 1))
    op, x, y = bench.operators[0], *bench.tensors
    usual = Machine("vpdpbusd", 16, 4, 128)
    finish = Finish.of(op.clamp, y, usual)
    assert Channels.of(op, x, finish, 16).start is not None
    op.bias[1] = 2**31 - 200_000
    op.multiplier[1], op.shift[1] = 2**31 - 1, -30
    assert Channels.of(op, x, finish, 16).start is None
    assert differing(bench.graph(), integers_alone(bench.graph(), load_target("host"))) == []

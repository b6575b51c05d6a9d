import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune.capture import capture
from hwprune.errors import LoweringError
from hwprune.lower import build_kernels, kernel_for
from hwprune.lower.aten import aten_call
from hwprune.lower.fallback import fallback_kernel, plain_fallback
from hwprune.lower.reference import ReferenceModule
from hwprune.lower.spec import PACKED, Kernel, Step, TensorSpec, Workload
from hwprune.tvm_runtime import compiling, load_tvm
from tests.lower_helpers import check_network, host, image, static

P = PACKED


def aten(target: str, shape: tuple[int, ...], result: tuple[int, ...], *args: object) -> Workload:
    text = json.dumps({"args": [{"input": 0}, *args], "kwargs": {}}, sort_keys=True)
    attrs = (("args", text), ("target", target))
    return Workload("aten", (TensorSpec(shape),), TensorSpec(result), (), attrs)


WORKLOADS = {
    "transpose": aten("aten.transpose.int", (2, 8, 6), (2, 6, 8), 1, 2),
    "softmax": aten("aten.softmax.int", (2, 8, 6), (2, 8, 6), -1),
    "sum": aten("aten.sum.dim_IntList", (3, 50, 7), (3, 7), [1]),
    "upsample": aten("aten.upsample_nearest2d.vec", (1, 3, 4, 4), (1, 3, 8, 8), [8, 8], None),
    "conv2d": Workload(
        "conv2d",
        (TensorSpec((1, 20, 6, 6), layout=P), TensorSpec((1, 24, 6, 6), layout=P)),
        TensorSpec((1, 24, 6, 6), layout=P),
        (TensorSpec((24, 20, 3, 3)), TensorSpec((24,))),
        (("dilation", (1, 1)), ("padding", (1, 1, 1, 1)), ("stride", (1, 1))),
        (Step("bias"), Step("add"), Step("relu")),
    ),
    "max_pool2d": Workload(
        "max_pool2d",
        (TensorSpec((1, 20, 9, 9), layout=P),),
        TensorSpec((1, 20, 5, 5), layout=P),
        (),
        (("dilation", (1, 1)), ("kernel", (3, 3)), ("padding", (1, 1, 1, 1)), ("stride", (2, 2))),
    ),
    "global_avg_pool": Workload(
        "global_avg_pool", (TensorSpec((2, 20, 5, 5), layout=P),), TensorSpec((2, 20))
    ),
    "linear": Workload(
        "linear",
        (TensorSpec((3, 20)),),
        TensorSpec((3, 30)),
        (TensorSpec((30, 20)), TensorSpec((30,))),
        (),
        (Step("bias"), Step("clamp", (0.0, 6.0))),
    ),
    "slice": Workload(
        "slice",
        (TensorSpec((1, 40, 3, 3), layout=P),),
        TensorSpec((1, 12, 3, 3), layout=P),
        (),
        (("axis", 1), ("start", 3), ("step", 2), ("stop", 27)),
    ),
    "concat": Workload(
        "concat",
        (TensorSpec((1, 40, 3, 3), layout=P), TensorSpec((1, 20, 3, 3), layout=P)),
        TensorSpec((1, 60, 3, 3), layout=P),
        (),
        (("axis", 1),),
    ),
    "shuffle": Workload(
        "shuffle",
        (TensorSpec((1, 36, 3, 3), layout=P),),
        TensorSpec((1, 36, 3, 3), layout=P),
        (),
        (("groups", 3),),
    ),
    "layout": Workload("layout", (TensorSpec((1, 20, 3, 3)),), TensorSpec((1, 20, 3, 3), layout=P)),
}


def arguments(workload: Workload, lanes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [s.physical(lanes) for s in workload.inputs] + [s.shape for s in workload.params]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def difference(workload: Workload, result: np.ndarray, given: list[np.ndarray]) -> float:
    """Largest relative difference from the reference on the channels that count."""
    lanes = host().lanes
    expected = ReferenceModule(workload, lanes)(*map(torch.from_numpy, given)).numpy()
    if workload.output.layout == PACKED:
        channels = workload.output.shape[1]
        result, expected = (
            a.transpose(0, 1, 4, 2, 3).reshape(a.shape[0], -1, *a.shape[2:4])[:, :channels]
            for a in (result, expected)
        )
    return float(np.abs(result - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", WORKLOADS)
def test_fallback_is_right(name: str, threads: int) -> None:
    workload = WORKLOADS[name]
    check(workload, fallback_kernel(workload, host().lanes, threads))


@pytest.mark.parametrize("name", ["transpose", "softmax", "sum", "upsample"])
def test_plain_loops_are_right(name: str) -> None:
    kernel = plain_fallback(WORKLOADS[name])
    check(WORKLOADS[name], kernel)
    text = kernel.func.script()
    assert "T.parallel" not in text
    assert "T.vectorized" not in text
    assert ("_init" in text) == (name in ("softmax", "sum"))  # apart from the loop of a sum


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()[:, -1]


def test_a_negative_index_counts_from_the_end() -> None:
    program = capture(Last(), (torch.randn(2, 5, 3),))
    (node,) = program.module.graph.find_nodes(op="call_function", target=torch.ops.aten.select.int)
    asked = json.loads(aten_call(node).workload.attr("args"))
    assert asked["args"] == [{"input": 0}, 1, 4]


def check(workload: Workload, kernel: Kernel) -> None:
    target, tvm = host(), load_tvm()
    assert kernel.rule == "fallback"
    function = kernel.func.with_attr("global_symbol", "f")
    with compiling():
        library = tvm.compile(
            tvm.IRModule({"f": function}), target=tvm.target.Target(target.tvm_target)
        )
    given = arguments(workload, target.lanes)
    count = len(workload.inputs)
    packed = (*given[:count], *kernel.pack(tuple(given[count:])))
    output = tvm.runtime.tensor(np.zeros(workload.output.physical(target.lanes), np.float32))
    library["f"](*map(tvm.runtime.tensor, packed), output)
    assert difference(workload, output.numpy(), given) < 1e-5


@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_compiled_together_run_and_are_timed(threads: int) -> None:
    workloads, target = list(WORKLOADS.values()), host()
    module = build_kernels(workloads, target, threads)
    for i, workload in enumerate(workloads):
        given = arguments(workload, target.lanes)
        assert difference(workload, module.run(i, given), given) < 1e-5
    times = module.time(0, repeats=3)
    assert len(times) == 3
    assert all(t > 0 for t in times)


def test_the_same_workload_gives_the_same_code() -> None:
    tvm, target = load_tvm(), host()
    for workload in WORKLOADS.values():
        again = Workload.from_key(workload.key())
        first = kernel_for(workload, target, 1)
        assert kernel_for(again, target, 1) is first
        fresh = fallback_kernel(again, target.lanes, 1)
        if first.rule == "fallback":
            tvm.ir.assert_structural_equal(first.func, fresh.func)


def test_unknown_operators_are_named() -> None:
    with pytest.raises(LoweringError, match="nosuch"):
        fallback_kernel(aten("aten.nosuch.default", (2, 2), (2, 2)), 16, 1)


def test_an_operator_without_a_converter_names_the_users_line() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x) + 1

    with pytest.raises(LoweringError, match="bessel") as error:
        check_network(static(Odd(), image(2, 3)))
    assert "test_lower_fallback.py" in error.value.where


def test_an_operator_that_is_several_kernels_is_refused() -> None:
    class Top(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.topk(x, 2, dim=-1)[0]

    with pytest.raises(LoweringError, match="topk") as error:
        check_network(static(Top(), image(2, 5)))
    assert "test_lower_fallback.py" in error.value.where


def test_another_result_than_the_one_asked_is_refused() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.GRU(6, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.recurrent(x)[1][-1]

    with pytest.raises(LoweringError, match=r"aten.gru.input the shape \(2, 5, 8\)") as error:
        check_network(static(Last(), image(2, 5, 6)))
    assert "test_lower_fallback.py" in error.value.where


class Several(nn.Module):
    """Operators outside the vocabulary: several results, constants inside, integers."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        values = torch.stack(torch.unbind(x, 1)[::-1], 2)
        rolled = torch.roll(x, 1, 1)
        first, second = torch.split(rolled, [2, 4], dim=1)
        picked = torch.nn.functional.embedding(index, x[0])
        return values, first.flip(1), second.sum(1), picked, torch.layer_norm(x, (x.shape[-1],))


def test_operators_outside_the_vocabulary_in_a_network() -> None:
    check_network(static(Several(), image(2, 6, 8), torch.tensor([[1, 0, 5]])))


class Sized(nn.Module):
    """Operators that read a tensor for its sizes alone."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        length = x.norm(dim=1, keepdim=True)
        return length.expand_as(x) + 1.0, x.view_as(y).sum(0), y.reshape_as(x).flip(1)


def test_tensors_read_for_their_sizes_alone() -> None:
    check_network(static(Sized(), image(2, 6), image(2, 3, 2)))

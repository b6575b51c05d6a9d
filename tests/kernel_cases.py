"""Workloads of every schedule rule, and running one against the float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hwprune.errors import TargetError
from hwprune.lower.cpu import schedule
from hwprune.lower.expansion import join
from hwprune.lower.kernels import tvm_target
from hwprune.lower.packing import pack, unpack
from hwprune.lower.reference import evaluate
from hwprune.lower.spec import PACKED, PLAIN, Kernel, Step, TensorSpec, Workload
from hwprune.target import Target, check_runnable, load_target
from hwprune.tvm_runtime import compiling, load_tvm, set_threads


def runnable(name: str) -> Target:
    """A target by name; skips the test where this machine lacks its instructions."""
    target = load_target(name)
    try:
        check_runnable(target)
    except TargetError as error:
        pytest.skip(str(error))
    return target


def packed(*shape: int) -> TensorSpec:
    return TensorSpec(shape, layout=PACKED)


def plain(*shape: int) -> TensorSpec:
    return TensorSpec(shape)


def conv(
    channels: int,
    outputs: int,
    size: tuple[int, int],
    kernel: int = 3,
    stride: int = 1,
    padding: tuple[int, int, int, int] | None = None,
    groups: int = 1,
    dilation: int = 1,
    steps: tuple[Step, ...] = (),
    layout: str = PACKED,
) -> Workload:
    pad = padding or ((kernel // 2 * dilation,) * 4)
    reach = dilation * (kernel - 1) + 1
    out = tuple((s + pad[i] + pad[i + 2] - reach) // stride + 1 for i, s in enumerate(size))
    output = packed(1, outputs, *out)
    params = [plain(outputs, channels // groups, kernel, kernel)]
    params += [plain(outputs) for s in steps if s.op in ("bias", "prelu")]
    params += [plain(outputs) for s in steps if s.op == "affine" for _ in (0, 1)]
    extra = [output for s in steps if s.op in ("add", "mul", "sub")]
    attrs = (("dilation", (dilation,) * 2), ("padding", pad), ("stride", (stride,) * 2))
    return Workload(
        "conv2d",
        (TensorSpec((1, channels, *size), layout=layout), *extra),
        output,
        tuple(params),
        attrs,
        steps,
    )


def expansion(
    channels: int,
    wide: int,
    size: tuple[int, int],
    between: tuple[Step, ...] = (),
    **depthwise: Any,
) -> Workload:
    """A 1x1 convolution, steps, and the depthwise convolution of the result, as one workload."""
    expand = conv(channels, wide, size, 1, steps=between)
    return join(expand, conv(wide, wide, size, groups=wide, **depthwise))


def relative_error(workload: Workload, target: Target, threads: int) -> float:
    """Compile and run a workload on random data; largest error over the largest output."""
    found, wanted = run_kernel(workload, target, threads)
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def run_kernel(workload: Workload, target: Target, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """The logical output of a compiled workload on random data, and what it is in float64."""
    tvm, (kernel, library) = load_tvm(), compiled(workload, target, threads)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(t.shape, generator=generator) for t in workload.inputs]
    params = [torch.randn(t.shape, generator=generator) for t in workload.params]
    pairs = zip(inputs, workload.inputs, strict=True)
    arrays = [_physical(x, t, target.lanes) for x, t in pairs]
    arrays += kernel.pack(tuple(p.numpy() for p in params))
    output = tvm.runtime.tensor(np.full(workload.output.physical(target.lanes), np.nan, np.float32))
    set_threads(threads)
    library["main"](*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays), output)
    wanted = evaluate(workload, [x.double() for x in inputs], [p.double() for p in params]).numpy()
    found = output.numpy()
    assert np.isfinite(found).all(), "all lanes must be written, with finite values"
    found = unpack(torch.from_numpy(found), workload.output).numpy()
    assert found.shape == wanted.shape
    return found, wanted


def compiled(workload: Workload, target: Target, threads: int) -> tuple[Kernel, Any]:
    """The kernel that a rule makes of a workload, and TVM's executable of it."""
    tvm, kernel = load_tvm(), schedule(workload, target, threads)
    assert kernel is not None, "no rule took the workload"
    module = tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")})
    with compiling():
        return kernel, tvm.compile(module, target=tvm_target(target))


def _physical(x: torch.Tensor, spec: TensorSpec, lanes: int) -> np.ndarray:
    """An input as it lies in memory; lanes past the channels hold values that must not count."""
    array = pack(x, spec, lanes).numpy()
    if spec.layout == PACKED and spec.shape[1] % lanes:
        array[:, -1, :, :, spec.shape[1] % lanes :] = 77.0
    return array


__all__ = [
    "PACKED",
    "PLAIN",
    "compiled",
    "conv",
    "expansion",
    "packed",
    "plain",
    "relative_error",
    "run_kernel",
]

"""Workloads of every schedule rule, and running one against the float64 reference."""

from __future__ import annotations

import numpy as np
import torch

from hwprune.lower.cpu import schedule
from hwprune.lower.reference import evaluate, pack, unpack
from hwprune.lower.spec import PACKED, PLAIN, Step, TensorSpec, Workload
from hwprune.target import Target
from hwprune.tvm_runtime import load_tvm, set_threads


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


def relative_error(workload: Workload, target: Target, threads: int) -> float:
    """Compile and run a workload on random data; largest error over the largest output."""
    tvm = load_tvm()
    kernel = schedule(workload, target, threads)
    assert kernel is not None, "no rule took the workload"
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(t.shape, generator=generator) for t in workload.inputs]
    params = [torch.randn(t.shape, generator=generator) for t in workload.params]
    module = tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")})
    library = tvm.compile(module, target=tvm.target.Target(dict(target.tvm_target)))
    set_threads(threads)
    arrays = [
        pack(x, t, target.lanes).numpy() for x, t in zip(inputs, workload.inputs, strict=True)
    ]
    arrays += kernel.pack(tuple(p.numpy() for p in params))
    output = tvm.runtime.tensor(np.full(workload.output.physical(target.lanes), np.nan, np.float32))
    library["main"](*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays), output)
    wanted = evaluate(workload, [x.double() for x in inputs], [p.double() for p in params]).numpy()
    found = output.numpy()
    assert np.isfinite(found).all(), "padding lanes must be finite"
    found = unpack(torch.from_numpy(found), workload.output).numpy()
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


__all__ = ["PACKED", "PLAIN", "conv", "packed", "plain", "relative_error"]

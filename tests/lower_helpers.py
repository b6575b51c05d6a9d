"""What the tests of lowering share: small programs, the host target, comparing with torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.capture import Program, capture, specialize
from hwprune.lower import Lowered, lower
from hwprune.lower.spec import Call
from hwprune.target import Target, load_target


@lru_cache(maxsize=1)
def host() -> Target:
    return load_target("host")


def randomise(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with random batch-norm statistics."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def static(model: nn.Module, *inputs: Tensor) -> Program:
    """The specialised program of a model, with random batch-norm statistics."""
    return specialize(capture(randomise(model), inputs))


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(program: Program) -> list[Tensor]:
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(program.module(*program.inputs))


def relative_error(ours: np.ndarray, theirs: Tensor) -> float:
    expected = theirs.detach().numpy().astype(np.float64)
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / max(np.abs(expected).max(), 1e-30))


def check_network(program: Program, threads: int = 1, tolerance: float = 1e-5) -> Lowered:
    """Lower, run and compare every output with torch."""
    expected = outputs(program)
    lowered = lower(program, host(), threads)
    results = lowered.run(*(t.numpy() for t in program.inputs))
    assert len(results) == len(expected)
    for ours, theirs in zip(results, expected, strict=True):
        assert relative_error(ours, theirs) < tolerance
    return lowered


def ops(calls: tuple[Call, ...]) -> list[str]:
    return [call.workload.op for call in calls]


def steps(call: Call) -> list[str]:
    return [step.op for step in call.workload.epilogue]

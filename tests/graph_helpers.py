"""What the tests of capture, coupling and rewriting share: networks and plans by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune.capture import capture, fingerprint
from hwprune.couple import Coupling, couple
from hwprune.plan import Plan
from hwprune.program import Program
from hwprune.rewrite import rewrite
from hwprune.verify import Certificate, verify

FAST = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_0", "rnet", "mlp"]
SLOW = [
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "googlenet",
    "vgg11_bn",
    "efficientnet_b0",
    "mnasnet0_5",
    "resnext50_32x4d",
    "regnet_y_400mf",
    "efficientnet_lite0",
    "onet",
]
MODELS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def model_and_input(name: str) -> tuple[nn.Module, Tensor]:
    """A network of `examples.models` and a small input; skips where its package is absent."""
    from examples.models import build, example_input

    try:
        model = build(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    x = example_input(name)
    if x.ndim == 4 and x.shape[-1] == 224:
        size = 96 if name == "googlenet" else 64
        x = x[:, :, :size, :size].contiguous()
    return model, x


def random_plan(program: Program, coupling: Coupling, keep: float = 0.5, seed: int = 0) -> Plan:
    """Each group keeps a random `keep` of its units, at least one; branches all stay."""
    rng = np.random.default_rng(seed)
    kept = {}
    for group in coupling.groups:
        count = max(1, round(group.width * keep))
        kept[group.name] = tuple(sorted(rng.choice(group.width, count, replace=False).tolist()))
    kept |= {branch.name: (0,) for branch in coupling.branches}
    return Plan(fingerprint(program), kept, forms=coupling.forms)


def prune(
    model: nn.Module, inputs: tuple[Tensor, ...], keep: float = 0.5, seed: int = 0
) -> tuple[Program, Coupling, Plan, Program, Certificate]:
    """Capture, couple, plan at random, rewrite and certify."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        program = capture(model, inputs)
    coupling = couple(program)
    plan = random_plan(program, coupling, keep, seed)
    smaller = rewrite(program, coupling, plan)
    return program, coupling, plan, smaller, verify(program, coupling, plan, smaller)

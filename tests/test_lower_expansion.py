"""Which expansions are joined to their depthwise convolutions, and what the joint kernel is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hwprune.capture import capture, fingerprint, specialize
from hwprune.couple import couple
from hwprune.lower import fold_batch_norm, fuse
from hwprune.lower.cpu import expand_depthwise
from hwprune.lower.cpu.emit import Context
from hwprune.lower.expansion import EXPAND_DEPTHWISE, join, parts
from hwprune.lower.fallback import fallback_kernel
from hwprune.lower.spec import Call, Step, Workload
from hwprune.macs import macs
from hwprune.plan import Plan
from hwprune.rewrite import rewrite
from hwprune.target import load_target
from hwprune.workload import sites
from tests.kernel_cases import conv, expansion, relative_error, runnable
from tests.lower_helpers import check_network, image, ops, static, steps

S = Step
JOINT = expansion(10, 20, (32, 33), (S("affine"), S("prelu"), S("silu")), stride=2, kernel=5)
CASES = {
    "strided": expansion(16, 40, (17, 23), (S("bias"), S("relu")), stride=2, steps=(S("bias"),)),
    "tall-kernel": expansion(9, 33, (12, 9), (S("bias"), S("silu")), kernel=7),
    "no-padding": expansion(4, 16, (9, 14), padding=(0, 0, 0, 0), steps=(S("relu"),)),
    "one-sided": expansion(24, 50, (10, 10), (S("clamp", (0, 6)),), padding=(0, 1, 2, 1)),
    "wide-padding": expansion(3, 5, (6, 2), (S("bias"),), padding=(3, 3, 3, 3)),
    "sparse": expansion(8, 17, (13, 13), (S("bias"),), stride=5, padding=(1, 1, 1, 1)),
    "dilated": expansion(8, 17, (13, 13), (S("bias"),), dilation=3),
    "single": expansion(1, 1, (8, 8), (S("bias"), S("relu"))),
    "residual": expansion(20, 48, (8, 8), (S("affine"),), steps=(S("bias"), S("add"))),
}


class Inverted(nn.Module):
    """An inverted residual block with a gate after the depthwise convolution."""

    def __init__(self, inputs: int = 12, wide: int = 24, stride: int = 1) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.bn2, self.gate = nn.BatchNorm2d(wide), nn.Conv2d(wide, wide, 1)
        self.project = nn.Conv2d(wide, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.bn1(self.expand(x)))
        y = nn.functional.silu(self.bn2(self.depthwise(y)))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return self.project(y)


def calls_of(model: nn.Module, *shape: int) -> tuple[Call, ...]:
    return fuse(fold_batch_norm(static(model, image(*shape))))


@pytest.mark.parametrize(("name", "threads"), [("x86-64-v3", 2), ("x86-64-v4", 1)])
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_matches_float64(case: str, name: str, threads: int) -> None:
    assert relative_error(CASES[case], runnable(name), threads) < 2e-6


def test_two_images_on_two_threads() -> None:
    one = CASES["strided"]
    two = one.with_shapes([(2, 16, 17, 23)], (2, 40, 9, 12), [p.shape for p in one.params])
    assert relative_error(two, runnable("x86-64-v4"), 2) < 2e-6


@pytest.mark.parametrize(("stride", "threads"), [(1, 2), (2, 1)])
def test_a_block_is_joined_and_computes_the_same(stride: int, threads: int) -> None:
    program = static(Inverted(stride=stride), image(1, 12, 32, 32))
    lowered = check_network(program, threads)
    found = [call for call in lowered.calls if call.workload.op == EXPAND_DEPTHWISE]
    assert len(found) == 1
    assert lowered.rules[found[0].name][0] == "cpu.expand_depthwise"
    assert steps(found[0]) == ["bias", "silu"]
    assert found[0].workload.attr("expansion") == (("bias", ()), ("clamp", (0.0, 6.0)))
    assert not any(call.output == "conv2d" for call in lowered.calls)


@pytest.mark.parametrize(("size", "stride", "joined"), [(28, 1, 0), (28, 2, 1), (14, 2, 0)])
def test_small_planes_are_left_alone(size: int, stride: int, joined: int) -> None:
    calls = calls_of(Inverted(stride=stride), 1, 12, size, size)
    assert ops(calls).count(EXPAND_DEPTHWISE) == joined


@pytest.mark.parametrize(("inputs", "wide"), [(1, 24), (8, 1), (3, 40), (64, 400)])
def test_widths_do_not_matter(inputs: int, wide: int) -> None:
    stem = nn.Conv2d(3, inputs, 3, padding=1)
    calls = calls_of(nn.Sequential(stem, Inverted(inputs, wide)), 1, 3, 32, 32)
    assert ops(calls).count(EXPAND_DEPTHWISE) == 1


class TwoReaders(Inverted):
    def forward(self, x: Tensor) -> Tensor:
        wide = self.expand(x)
        return self.project(self.depthwise(wide) + wide)


class TwoResults(Inverted):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        wide = self.expand(x)
        return self.depthwise(wide), wide


class Viewed(Inverted):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        wide = self.expand(x)
        return self.depthwise(wide), wide.permute(0, 2, 3, 1)


class Added(Inverted):
    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise(self.expand(x) + self.gate(torch.cat([x, x], 1)))


class Shared(Inverted):
    """The expansion runs twice, and only one of its results leads to a depthwise convolution."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.depthwise(self.expand(x)), self.expand(x.relu())


@pytest.mark.parametrize("kind", [TwoReaders, TwoResults, Viewed, Added, Shared])
def test_what_others_read_is_kept(kind: type[Inverted]) -> None:
    found = calls_of(kind(), 1, 12, 32, 32)
    assert ops(found).count(EXPAND_DEPTHWISE) == (kind is Shared)


@pytest.mark.parametrize(
    "expand",
    [nn.Conv2d(12, 24, 1, 2), nn.Conv2d(12, 24, 1, groups=2), nn.Conv2d(12, 24, 1, padding=1)],
    ids=["strided", "grouped", "padded"],
)
def test_only_plain_pointwise_convolutions_expand(expand: nn.Conv2d) -> None:
    model = nn.Sequential(expand, nn.Conv2d(24, 24, 3, groups=24))
    assert EXPAND_DEPTHWISE not in ops(calls_of(model, 1, 12, 80, 80))
    dense = nn.Sequential(nn.Conv2d(12, 24, 1), nn.Conv2d(24, 24, 3, groups=12))
    assert EXPAND_DEPTHWISE not in ops(calls_of(dense, 1, 12, 80, 80))


def test_a_joint_workload_comes_apart_again() -> None:
    first, second = parts(JOINT)
    assert join(first, second) == JOINT
    assert first == conv(10, 20, (32, 33), 1, steps=(S("affine"), S("prelu"), S("silu")))
    assert second == conv(20, 20, (32, 33), 5, 2, groups=20)
    assert Workload.from_key(JOINT.key()) == JOINT
    assert macs(JOINT) == 10 * 20 * 32 * 33 + 25 * 20 * 16 * 17


def test_what_the_rule_leaves_to_others() -> None:
    context = Context.of(load_target("x86-64-v4"), 1)
    assert expand_depthwise.schedule(conv(16, 16, (32, 32), 1), context) is None
    unknown = expansion(4, 8, (32, 32), (S("cube"),))
    assert expand_depthwise.schedule(unknown, context) is None
    outside = expansion(4, 8, (9, 2), kernel=1, stride=9, padding=(0, 3, 0, 3))
    assert outside.output.shape == (1, 8, 1, 1)
    assert expand_depthwise.schedule(outside, context) is None


def test_the_fallback_knows_it_too() -> None:
    assert fallback_kernel(JOINT, 8, 1).workload == JOINT


def test_the_sites_are_those_of_the_pruned_network() -> None:
    """Two widths at most, and every kernel as lowering the really smaller network yields it."""
    stem, block = nn.Conv2d(3, 16, 3, padding=1), Inverted(16, 40, stride=2)
    program = capture(nn.Sequential(stem, block).eval(), (image(1, 3, 30, 30),))
    coupling = couple(program)
    folded = fold_batch_norm(specialize(program))
    found = sites(fuse(folded), coupling, folded)
    joint = [site for site in found if site.call.workload.op == EXPAND_DEPTHWISE]
    assert [len(site.axes) for site in joint] == [2]
    kept = {g.name: tuple(range(1, 1 + g.width * 2 // 3)) for g in coupling.groups}
    assert len(kept) == 2
    plan = Plan(fingerprint(program), kept)
    smaller = fuse(fold_batch_norm(specialize(rewrite(program, coupling, plan))))
    assert [s.workload(plan.widths()) for s in found] == [c.workload for c in smaller]
    assert joint[0].workload(plan.widths()).output.shape[1] == 26

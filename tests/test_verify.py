"""The certificate fails where it must: wrong weights, wrong graph, wrong labels."""

import dataclasses

import pytest
import torch
from graph_helpers import model_and_input, prune
from torch import fx, nn

from hwprune.capture import capture
from hwprune.compare import TOLERANCE, compare, gradient_error
from hwprune.couple import couple
from hwprune.errors import CertificateError
from hwprune.plan import Plan
from hwprune.program import fingerprint
from hwprune.rewrite import rewrite
from hwprune.verify import verify


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.a(x)).sigmoid()
        return self.head((self.b(x) + x).mean((2, 3)))


def pruned():
    return prune(Block().eval(), (torch.randn(1, 3, 6, 6),))


def test_passes_with_values_and_gradients():
    *_, certificate = pruned()
    assert certificate.passed
    assert certificate.max_rel_error < 1e-13
    assert certificate.gradient_rel_error < 1e-12
    assert "float64" in certificate.reference


def test_fails_on_a_changed_weight():
    program, coupling, plan, smaller, _ = pruned()
    with torch.no_grad():
        smaller.module.get_parameter("b.weight")[0, 0, 0, 0] += 1e-3
    certificate = verify(program, coupling, plan, smaller)
    assert not certificate.passed
    with pytest.raises(CertificateError, match=r"b.weight is not a slice"):
        certificate.check()


def test_fails_on_a_changed_graph():
    program, coupling, plan, smaller, _ = pruned()
    node = next(n for n in smaller.module.graph.nodes if n.name == "sigmoid")
    node.target = torch.ops.aten.tanh.default
    smaller.module.recompile()
    certificate = verify(program, coupling, plan, smaller)
    assert not certificate.passed
    assert certificate.max_rel_error > 1e-3


def test_fails_on_another_plans_program():
    program, coupling, plan, smaller, _ = pruned()
    units = plan.kept["a"]
    other = Plan(fingerprint(program), {"a": tuple(u for u in range(8) if u not in units)})
    assert not verify(program, coupling, other, smaller).passed
    bigger = Plan(fingerprint(program), {"a": tuple(range(7))})
    assert "has length" in verify(program, coupling, bigger, smaller).failure


def test_fails_on_labels_that_miss_a_mix_of_channels():
    """Were a sum over channels taken for harmless, the certificate would catch it."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.a(x).sigmoid()
            return self.b(x - x.logsumexp(1, keepdim=True))

    class Plain(Mixed):
        def forward(self, x):
            x = self.a(x).sigmoid()
            return self.b(x - x.mul(1.0))

    x = torch.randn(2, 4)
    mixed, plain = capture(Mixed(), (x,)), capture(Plain(), (x,))
    assert couple(mixed).groups == ()
    wrong = couple(plain)
    plan = Plan(fingerprint(mixed), {"a": (0, 2, 3)})
    shapes = {**wrong.shapes, "logsumexp": (2, 1)}
    wrong = dataclasses.replace(wrong, shapes=shapes, axes={**wrong.axes})
    smaller = rewrite(mixed, wrong, plan)
    certificate = verify(mixed, wrong, plan, smaller)
    assert not certificate.passed


def test_values_alone():
    program, coupling, plan, smaller, _ = pruned()
    certificate = verify(program, coupling, plan, smaller, gradients=False)
    assert certificate.passed
    assert certificate.gradient_rel_error is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny"])
def test_networks_with_much_frozen_are_still_right(name):
    model, x = model_and_input(name)
    x = torch.randn(1, 3, 224, 224) if name == "vit_b_16" else x
    prune(model, (x,))[-1].check()


def test_a_gradient_that_is_zero_may_differ_by_roundings_and_no_more():
    """As of what comes before a layer norm over one channel: nothing but rounding is left."""
    large = torch.tensor([1.6, -0.5], dtype=torch.float64)
    zero, rounded = torch.tensor([[2.3e-15], [-1.9e-15]], dtype=torch.float64)
    pairs = [(large, large.clone()), (zero, rounded)]
    assert gradient_error(pairs) <= TOLERANCE
    assert gradient_error([*pairs, (zero, zero + 1e-12)]) > TOLERANCE
    assert gradient_error([(large, large * (1 + 1e-8))]) > TOLERANCE


def test_a_gradient_that_is_badly_conditioned_may_differ_by_its_own_roundings():
    zero = torch.tensor([5.9e-13, -3.0e-13], dtype=torch.float64)
    pairs = [(torch.ones(2), torch.ones(2)), (zero, zero + 9e-13)]
    assert gradient_error(pairs) > TOLERANCE
    assert gradient_error(pairs, [2e-16, 3e-13]) <= TOLERANCE
    assert gradient_error(pairs, [2e-16, 3e-14]) > TOLERANCE
    wrong = [(torch.ones(2), torch.ones(2) * (1 + 1e-6)), pairs[1]]
    assert gradient_error(wrong, [2e-16, 3e-13]) > TOLERANCE


class Narrow(nn.Module):
    """What lies before the norm has no gradient: only the norm's mean, its shift, is read."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.a, self.scale, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(4, 4)
        self.b = nn.Linear(4, 3)
        nn.init.constant_(self.scale.weight, -1e-2)
        nn.init.constant_(self.scale.bias, -30.0)

    def forward(self, x):
        y = self.scale(self.a(x)).roll(self.steps, -1)
        return self.b(self.norm(y).mean((2, 3)))


def test_roundings_of_a_gradient_that_is_zero_are_no_difference(monkeypatch):
    def error(factor: float) -> float:
        torch.manual_seed(0)
        large, small = (fx.symbolic_trace(Narrow(steps).double().eval()) for steps in (0, 1))
        small.load_state_dict(large.state_dict())
        small.get_parameter("b.weight").detach().mul_(factor)
        x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
        return compare(large, small, {}, [x], True, torch.Generator().manual_seed(0))[1]

    assert error(1.0) <= TOLERANCE
    assert error(1 + 1e-6) > TOLERANCE
    monkeypatch.setattr("hwprune.compare._roundings", lambda *given: dict.fromkeys(given[3], 0.0))
    assert error(1.0) > TOLERANCE

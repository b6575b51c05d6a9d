import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from hwprune.capture import capture, fingerprint
from hwprune.couple import couple
from hwprune.curves import Curve, Point, Sensitivity, weigh
from hwprune.errors import HwpruneError
from hwprune.plan import Plan
from hwprune.rewrite import rewrite
from hwprune.score import score
from hwprune.sensitivity import measure_sensitivity
from tests.small_net import small_net
from tests.test_score_criteria import Attention, Net


@pytest.fixture(scope="module")
def network():
    program = capture(small_net(), (torch.randn(2, 3, 16, 16),))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 10, (8,), generator=generator)
    batches = [((x,), y) for x, y in zip(images.split(4), labels.split(4), strict=True)]
    coupling = couple(program, branches=True)
    return program, coupling, score(program, coupling, "l2"), batches


@pytest.fixture(scope="module")
def measured(network) -> Sensitivity:
    program, coupling, scores, batches = network
    return measure_sensitivity(
        program, coupling, scores, batches, loss=functional.cross_entropy, importance="l2",
        compensate=False,
    )  # fmt: skip


def smaller(network, name: str, width: int):
    """The rewritten program with the strongest units of one group."""
    program, coupling, scores, _ = network
    plan = Plan.full(coupling, fingerprint(program))
    order = np.argsort(-scores[name], kind="stable")[:width]
    kept = {**plan.kept, name: tuple(sorted(order.tolist()))}
    if width == 0:
        branch = next(b for b in coupling.branches if b.name == name)
        kept |= dict.fromkeys(branch.groups, ())
    return rewrite(program, coupling, replace(plan, kept=kept)).module


def test_every_point_is_that_of_the_smaller_network(network, measured) -> None:
    program, coupling, _, batches = network
    images, labels = torch.cat([x for (x,), _ in batches]), torch.cat([y for _, y in batches])
    with torch.no_grad():
        whole = program.module(images)
        assert {c.group for c in measured.curves} == coupling.full.keys()
        for curve in measured.curves:
            assert curve.points[0].width == coupling.full[curve.group]
            assert curve.points[0].error == 0
            for point in curve.points[1:]:
                out = smaller(network, curve.group, point.width)(images)
                error = float((out - whole).square().sum() / whole.square().sum())
                assert point.error == pytest.approx(error, rel=1e-4)
                loss = float(functional.cross_entropy(out, labels))
                assert point.loss == pytest.approx(loss, rel=1e-4)
                assert point.accuracy == float((out.argmax(1) == labels).float().mean())


def test_statistics_run_over_what_is_left() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (4, 5))
    program = capture(Attention().eval(), (ids[:2],))
    coupling = couple(program)
    stream = next(g for g in coupling.groups if g.through_norm_statistics)
    scores = score(program, coupling)
    found = measure_sensitivity(program, coupling, scores, [((ids,), None)], shares=(0.5,))
    curve = next(c for c in found.curves if c.group == stream.name)
    order = np.argsort(-scores[stream.name], kind="stable")[: curve.points[1].width]
    plan = Plan.full(coupling, fingerprint(program))
    kept = {**plan.kept, stream.name: tuple(sorted(order.tolist()))}
    out = rewrite(program, coupling, replace(plan, kept=kept)).module(ids).detach()
    whole = program.module(ids).detach()
    wanted = float((out - whole).square().sum() / whole.square().sum())
    assert curve.points[1].error == pytest.approx(wanted, rel=1e-4)
    assert curve.points[1].loss is None


def test_layers_get_the_mean_of_units_that_are_gone() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(6, 3, 6, 6)
    program = capture(net, (x[:2],))
    coupling = couple(program)
    scores = score(program, coupling)
    batches = [((part,), None) for part in x.split(3)]
    found = measure_sensitivity(program, coupling, scores, batches, shares=(0.5,))
    with torch.no_grad():
        hidden = torch.relu(net.dw(torch.relu(net.bn(net.a(x)))))
        last = torch.relu(net.b(hidden))
        whole = net.c(last.flatten(1))
        for name, width, value in (("a", 6, hidden), ("b", 5, last)):
            curve = next(c for c in found.curves if c.width == width)
            assert curve.points[1].width == round(width / 2)
            gone = np.argsort(-scores[curve.group], kind="stable")[curve.points[1].width :].copy()
            changed = value.clone()
            if name == "a":
                changed[:, gone] = value.mean((0, 2, 3), keepdim=True)[:, gone]
                changed = torch.relu(net.b(changed))
            else:  # the linear layer has a bias, and so a mean, at each position
                changed[:, gone] = value.mean(0, keepdim=True)[:, gone]
            error = (net.c(changed.flatten(1)) - whole).square().sum() / whole.square().sum()
            assert curve.points[1].error == pytest.approx(float(error), rel=1e-4)


class Doubled(torch.nn.Module):
    """Every channel of what is between its layers is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 6, 3), torch.nn.Conv2d(6, 4, 3)
        with torch.no_grad():
            self.a.weight[3:] = 2 * self.a.weight[:3]
            self.a.bias[3:] = 2 * self.a.bias[:3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_what_stays_tells_what_is_gone() -> None:
    torch.manual_seed(0)
    x = torch.randn(48, 3, 8, 8)
    program = capture(Doubled().eval(), (x[:2],))
    coupling = couple(program)
    scores = {g.name: np.arange(g.width, 0.0, -1) for g in coupling.groups}
    judged, fit = [((x[:16],), None)], [((part,), None) for part in x[16:].split(16)]
    measure = partial(measure_sensitivity, program, coupling, scores, judged, shares=(0.5, 0.2))
    by_mean, told = measure().curves[0], measure(fit=fit).curves[0]
    assert by_mean.points[1].error > 0.1
    assert told.points[1].error < 1e-4  # three channels say the other three
    assert 0.1 < told.points[2].error < by_mean.points[2].error  # one says one more of them
    assert measure(fit=fit).fitted == 32
    whole = measure(fit=fit, compensate=False).curves[0]
    assert whole == measure(compensate=False).curves[0]


class DoubledStream(torch.nn.Module):
    """Every channel of what its norm runs over is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(5, 12), torch.nn.Linear(12, 4)
        self.norm = torch.nn.LayerNorm(12)
        with torch.no_grad():
            self.a.weight[6:] = self.a.weight[:6]
            self.a.bias[6:] = self.a.bias[:6]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)))


def test_a_stream_is_measured_reconstructed() -> None:
    torch.manual_seed(0)
    x = torch.randn(48, 7, 5)
    program = capture(DoubledStream().eval(), (x[:2],))
    coupling = couple(program)
    (stream,) = coupling.groups
    assert stream.through_norm_statistics
    judged, fit = [((x[:16],), None)], [((part,), None) for part in x[16:].split(4)]
    scores = {stream.name: np.arange(12, 0.0, -1)}
    measure = partial(measure_sensitivity, program, coupling, scores, judged, shares=(0.5, 0.25))
    alone, told = measure().curves[0], measure(fit=fit).curves[0]
    assert told.points[0].error == 0
    assert alone.points[1].error > 0.1
    assert told.points[1].error < 1e-4  # six channels say the other six
    assert 0.01 < told.points[2].error < alone.points[2].error
    assert measure(fit=fit, compensate=False).curves[0] == measure(compensate=False).curves[0]


def test_the_program_is_left_as_it_was(network, measured) -> None:
    program, coupling, scores, batches = network
    before = copy.deepcopy(program.module.state_dict())
    measure_sensitivity(program, coupling, scores, batches[:1], shares=(0.5,))
    for name, value in program.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_resumes_where_it_was_stopped(network, measured, tmp_path) -> None:
    program, coupling, scores, batches = network
    file = tmp_path / "sensitivity.json"
    some = replace(measured, curves=measured.curves[:2])
    some = replace(some, curves=(replace(some.curves[0], width=99), some.curves[1]))
    some.save(file)
    again = measure_sensitivity(
        program, coupling, scores, batches, loss=functional.cross_entropy, importance="l2",
        compensate=False, file=file,
    )  # fmt: skip
    assert again.curves[0].width == 99  # it was not measured again
    assert again.curves[1:] == measured.curves[1:]
    assert Sensitivity.load(file) == again
    with pytest.raises(HwpruneError, match="other settings"):
        measure_sensitivity(program, coupling, scores, batches[:1], importance="l2", file=file)


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({"format": 2})])
def test_a_malformed_file_is_refused(tmp_path, text) -> None:
    file = tmp_path / "sensitivity.json"
    file.write_text(text)
    with pytest.raises(HwpruneError, match="cannot be read as sensitivity"):
        Sensitivity.load(file)


def curves(*points: tuple[int, float], width: int = 4) -> Sensitivity:
    found = tuple(Point(w, e) for w, e in points)
    return Sensitivity("", "", "", 1, True, 0, (Curve("g", width, found),))


def damage(*errors: float) -> np.ndarray:
    return -np.log(1.0 - np.array(errors))


def test_weighed_scores_add_up_to_the_damage_that_was_measured() -> None:
    scores = {"g": np.array([1.0, 4.0, 2.0, 3.0])}
    worth = weigh(scores, curves((4, 0.0), (3, 0.1), (2, 0.3), (1, 0.8)))["g"]
    assert (np.argsort(-worth) == np.argsort(-scores["g"])).all()
    steep = damage(0.8) - damage(0.3)  # below the least width as steep as above it
    lost = damage(0.8) + steep - np.cumsum(np.sort(worth)[::-1])
    np.testing.assert_allclose(lost, damage(0.8, 0.3, 0.1, 0.0), atol=1e-6)


def test_what_is_not_convex_becomes_so() -> None:
    scores = {"g": np.array([4.0, 3.0, 2.0, 1.0])}
    worth = weigh(scores, curves((4, 0.0), (3, 0.4), (2, 0.3), (1, 0.6), (0, 0.8)))["g"]
    assert (np.diff(worth) < 0).all()
    wanted = [*(damage(0.8, 0.6) - damage(0.6, 0.4)), *(damage(0.4, 0.4) / 2)]
    np.testing.assert_allclose(worth, wanted, rtol=1e-6)


def test_nothing_is_worse_than_what_is_lost() -> None:
    scores = {"g": np.array([2.0, 1.0])}
    lost = weigh(scores, curves((2, 0.0), (1, 0.5), (0, 0.96)))["g"]
    np.testing.assert_allclose(weigh(scores, curves((2, 0.0), (1, 0.5), (0, 7.0)))["g"], lost)


def test_two_groups_at_half_are_preferred_to_one_that_is_nearly_gone() -> None:
    """Together both keep less than the errors' sum says: 0.6 x 1 < 0.8 x 0.8."""
    points = (4, 0.0), (2, 0.2), (0, 0.4)
    together = weigh({"g": np.ones(4)}, curves(*points))["g"]
    assert together[:2].sum() > 1.2 * together[2:].sum()


def test_a_group_without_a_curve() -> None:
    scores = {"g": np.array([4.0, 3.0, 2.0, 1.0])}
    with pytest.raises(HwpruneError, match="h: has no sensitivity curve"):
        weigh({"h": scores["g"]}, curves((4, 0.0)))

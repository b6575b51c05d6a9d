import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune import importance
from hwprune.capture import capture
from hwprune.couple import couple
from hwprune.curves import Sensitivity
from hwprune.errors import HwpruneError
from hwprune.importance import Importance, unjudged
from hwprune.score import score
from tests.small_net import small_net

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
BATCHES = [((IMAGES[:6],), torch.arange(6)), ((IMAGES[6:],), torch.arange(6))]


@pytest.fixture(scope="module")
def network():
    program = capture(small_net(), (X,))
    return program, couple(program)


@pytest.mark.parametrize(
    ("options", "images", "match"),
    [
        ({"criterion": "magic"}, True, "unknown importance 'magic' .one of auto, apoz"),
        ({"aggregate": "median"}, True, "unknown aggregate 'median'"),
        ({"normalize": "log"}, True, "unknown normalize 'log'.*sensitivity"),
        ({"criterion": "wanda"}, False, "'wanda' needs.*calibrate"),
        ({"criterion": "fisher"}, False, "'fisher' needs.*calibrate"),
        ({"criterion": "taylor", "batches": BATCHES}, False, "'taylor' needs.*a loss"),
        ({"normalize": "sensitivity"}, False, "'sensitivity' needs.*calibrate"),
    ],
)
def test_says_what_is_wrong_before_long_work(options, images, match) -> None:
    with pytest.raises(HwpruneError, match=match):
        Importance(**options).check(images)
    names = {("importance" if k == "criterion" else k): v for k, v in options.items()}
    with pytest.raises(HwpruneError, match=match):
        hwprune.prune(nn.Module(), (X,), macs="50%", calibrate=IMAGES if images else None, **names)


def test_images_that_judge_are_not_looked_at(network) -> None:
    program, coupling = network
    found = Importance("wanda", normalize="share").on(IMAGES)(
        program, coupling, lambda done, total: None
    )
    seen = IMAGES[[i for i in range(12) if i % 4]]
    wanted = score(program, coupling, "wanda", images=seen)
    for name in wanted:
        assert (found[name] == wanted[name]).all()


def test_units_are_not_scored_on_what_then_judges_their_groups(network, monkeypatch) -> None:
    program, coupling = network
    many = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    seen: dict[str, torch.Tensor] = {}
    real, measure = importance.find_energies, importance.measure_sensitivity

    def energies(*args, **options):
        seen["scored"] = options["images"]
        return real(*args, **options)

    def sensitivity(*args, fit, **options):
        seen["judged"] = torch.cat([x for (x,), _ in args[3]])
        seen["fit"] = torch.cat([x for (x,), _ in fit])
        return measure(*args, fit=fit, **options)

    monkeypatch.setattr(importance, "find_energies", energies)
    monkeypatch.setattr(importance, "measure_sensitivity", sensitivity)
    Importance().on(many)(program, coupling, lambda done, total: None)
    ours = many[[i for i in range(64) if i % 4]]  # the others judge the result
    assert torch.equal(seen["judged"], ours[:16])
    assert torch.equal(seen["scored"], ours[16:])
    assert torch.equal(seen["fit"], ours[16:])
    assert unjudged(ours[:20]) is not None
    assert len(unjudged(ours[:20])) == 20  # too few to be set apart


def test_groups_compared_by_sensitivity(network) -> None:
    program, coupling = network
    usual = score(program, coupling, "l2")
    asked = Importance("l2", normalize="sensitivity", batches=BATCHES)
    found = asked.on(None)(program, coupling, lambda done, total: None)
    for name, scores in found.items():
        assert (np.argsort(-scores, kind="stable") == np.argsort(-usual[name], kind="stable")).all()
    assert any(
        not np.isclose(found[n].sum() / found[m].sum(), usual[n].sum() / usual[m].sum(), rtol=0.1)
        for n in found
        for m in found
        if n != m
    )


def test_images_are_used_unless_asked_otherwise(network) -> None:
    assert Importance().weighed(True)
    assert not Importance().weighed(False)
    assert not Importance(normalize="share").weighed(True)
    assert not Importance("lamp").weighed(True)  # it compares groups by itself
    assert (Importance().name(True), Importance().name(False)) == ("reconstruction", "l2")
    assert Importance("taylor").name(True) == "taylor"
    program, coupling = network
    asked = [Importance(), Importance("reconstruction", normalize="sensitivity")]
    usual, wanted = (a.on(IMAGES)(program, coupling, lambda done, total: None) for a in asked)
    assert all((usual[name] == wanted[name]).all() for name in wanted)


@pytest.mark.parametrize(
    "options", [{"aggregate": "max"}, {"importance": "l1", "normalize": "share"}]
)
def test_prunes_by_what_is_asked(options) -> None:
    result = hwprune.prune(
        small_net(), (X,), macs="60%", calibrate=IMAGES, recover="none", **options
    )
    assert result.certificate.passed
    assert result.report["pruned"]["macs"] <= 0.6 * result.report["dense"]["macs"]


def test_a_dry_run_writes_curves_and_a_plot(tmp_path) -> None:
    found = hwprune.find_sensitivity(small_net(), (X,), calibrate=IMAGES, out=tmp_path / "o")
    assert Sensitivity.load(tmp_path / "o" / "sensitivity.json") == found
    assert "<svg" in (tmp_path / "o" / "sensitivity.svg").read_text()
    halves = [c.half for c in found.ranked()]
    assert halves == sorted(halves, reverse=True)
    with pytest.raises(HwpruneError, match="needs unlabelled images"):
        hwprune.find_sensitivity(small_net(), (X,))
    with pytest.raises(HwpruneError, match="shares"):
        hwprune.find_sensitivity(small_net(), (X,), calibrate=IMAGES, shares=(1.5,))


def test_the_command_prints_the_most_sensitive_group_first(run, tmp_path) -> None:
    (tmp_path / "images").mkdir()
    for i, image in enumerate(IMAGES):
        np.save(tmp_path / "images" / f"{i:02}.npy", image.numpy())
    words = ("sensitivity", "tests.small_net:small_net", "--input", "1,3,16,16")
    out = tmp_path / "out"
    done = run(*words, "--out", out)
    assert done.status == 2
    assert "needs unlabelled images" in done.err
    done = run(*words, "--out", out, "--calibrate", tmp_path / "images")
    assert done.status == 0
    ranked = Sensitivity.load(out / "sensitivity.json").ranked()
    lines = [line for line in done.out.splitlines() if any(c.group in line for c in ranked)]
    found = [ranked.index(c) for line in lines for c in ranked if f" {c.group} " in line]
    assert found == [0, 1, 2]
    assert "branch:left.0" in [c.group for c in ranked]
    assert (out / "sensitivity.svg").exists()

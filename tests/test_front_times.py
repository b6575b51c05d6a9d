"""Fronts of devices that are not here: predicted and never called measured, or timed on a board."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hwprune
from hwprune.capture import capture
from hwprune.estimate import estimate_network
from hwprune.front import Front, read_front
from hwprune.obtain import open_table
from hwprune.report.front import draw_front
from hwprune.target import load_target
from tests.command_line import refused
from tests.test_emulate import emulated
from tests.test_front import NET, X, network, parameters

ASKED = ("--evaluate", "tests.test_front:parameters", "--budget", "60%", "--budget", "30%")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Front]:
    out = tmp_path_factory.mktemp("predicted") / "search"
    return out, hwprune.search(
        network(), (X,), out=out, target="cortex-a72", budgets=("60%", "30%"), evaluate=parameters,
        importance="auto", seed=0, name="network",
    )  # fmt: skip


def test_every_point_is_priced_by_the_model(predicted) -> None:
    out, front = predicted
    assert front.source == "model"
    assert "kernels on cortex-a72" in front.origin
    assert read_front(front.path) == front
    target = load_target("cortex-a72")
    with open_table(target) as table:
        for p in front.points:
            program = capture(out / p.directory / "model.pt2")
            span = estimate_network(program, target, 1, table)
            found = p.latency_us, p.latency_low_us, p.latency_high_us
            assert found == pytest.approx((span.median_us, span.low_us, span.high_us))
            assert p.ratio == pytest.approx(p.latency_us / front.points[0].latency_us)
    shares = [p.ratio for p in front.points]
    assert shares[0] == 1.0
    assert all(0.8 * b <= r <= b for b, r in zip((0.6, 0.3), shares[1:], strict=True))
    assert "latency, predicted by a model (ms)" in (out / "search.svg").read_text()
    assert draw_front(front).count("<path") > draw_front(_measured(front)).count("<path")


def _measured(front: Front) -> Front:
    """The same front as if it had no intervals."""
    points = tuple(
        type(p)(**{**vars(p), "latency_low_us": None, "latency_high_us": None})
        for p in front.points
    )
    return Front(**{**vars(front), "points": points, "source": "device"})


def test_on_the_command_line(predicted, run, tmp_path) -> None:
    words = ("search", *NET, *ASKED, "--target", "cortex-a72", "--out", predicted[0])
    done = run(*words)
    assert done.status == 0, done.err
    shown = " ".join(done.out.split())
    assert "latency predicted by a model" in shown
    assert "kernels on cortex-a72" in shown
    assert "measured" not in shown
    refused(run(*words, "--rpc", "localhost:1"), "latencies 'model', now it is 'board'")
    refused(run(*words, "--key", "rpi4"), "--key: needs --rpc or --tracker")
    finish = ("compile", "--from", predicted[0] / "search.json", "--point", 1)
    refused(run(*finish, "--out", tmp_path / "o", "--rpc", "127.0.0.1:1"), "cannot be reached")
    refused(run(*finish, "--out", tmp_path / "o", "--target", "cortex-a53"), "and target exclude")
    assert not (tmp_path / "o").exists()
    mcu = ("search", *NET, *ASKED, "--target", "cortex-m4", "--out", tmp_path / "mcu")
    refused(run(*mcu), "latencies of kind 'mcu' cannot be predicted")


def test_a_point_is_finished_for_its_device(predicted, run, tmp_path) -> None:
    target, (out, front) = emulated("cortex-a72"), predicted
    words = ("compile", "--from", out / "search.json", "--point", 1, "--out", tmp_path / "out")
    done = run(*words, "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["target"] == target.name
    assert report["ran_on"].startswith("qemu-aarch64")
    assert report["max_rel_error_compiled"] <= 1e-4
    assert report["pruned"]["latency_source"] == "model"
    assert report["pruned"]["latency_us"] == pytest.approx(front.points[1].latency_us)
    assert report["ratio"] == pytest.approx(front.points[1].ratio)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "asimd" in manifest["isa"]


def test_a_front_in_half_precision(run, tmp_path) -> None:
    target, out = emulated("cortex-a76"), tmp_path / "search"
    words = ("search", *NET, *ASKED[:4], "--dtype", "float16", "--out", out)
    done = run(*words, "--target", target.name)
    assert done.status == 0, done.err
    front = read_front(out / "search.json")
    assert (front.dtype, front.source) == ("float16", "model")
    wide = hwprune.prune(network(), (X,), target=target.name, latency=0.6)
    assert front.points[0].latency_us < 0.8 * wide.report["dense"]["latency_us"]
    finish = ("compile", "--from", out / "search.json", "--point", 1, "--out", tmp_path / "out")
    report = json.loads(run(*finish, "--json").out)
    assert report["dtype"] == "float16"
    assert report["pruned"]["latency_us"] == pytest.approx(front.points[1].latency_us)
    assert 1e-6 < report["max_rel_error_compiled"] < 1e-2
    refused(run(*finish, "--rpc", "127.0.0.1:1"), "float16 are not measured on boards yet")
    refused(run(*words, "--target", "cortex-a72"), "has no arithmetic in float16")

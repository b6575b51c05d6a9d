"""The command line: what it prints, its exit statuses, and one message for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NET = "tests.small_net:small_net"
SHAPE = ("--input", "1,3,32,32")


def hwprune(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hwprune.cli", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_prune_inspect_lower_run(tmp_path) -> None:
    small, out = tmp_path / "small", tmp_path / "out"
    done = hwprune("prune", NET, *SHAPE, "--macs", "50%", "--out", str(small), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["pruned"]["macs"] <= 0.5 * report["dense"]["macs"]
    assert {"model.pt2", "plan.json"} <= {f.name for f in small.iterdir()}

    done = hwprune("inspect", str(small / "model.pt2"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["groups"]

    done = hwprune("lower", str(small / "model.pt2"), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    done = hwprune("run", str(out), "--json", "--repeats", "5")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["median_us"] > 0
    assert row["source"] == "device"


def test_targets() -> None:
    names = [t["name"] for t in json.loads(hwprune("targets", "--json").stdout)]
    assert {"host", "x86-64-v3", "x86-64-v4"} <= set(names)
    assert json.loads(hwprune("targets", "x86-64-v4", "--json").stdout)["vector_bits"] == 512


def test_help_names_every_command() -> None:
    text = hwprune("--help").stdout
    for command in ("compile", "prune", "lower", "inspect", "profile", "targets", "run"):
        assert command in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prune", "nowhere:net", "--macs", "50%"), "nowhere"),
        (("prune", "tests.small_net:big_net", "--macs", "50%"), "big_net"),
        (("prune", NET, "--macs", "50%", "--input", "1,x"), "--input"),
        (("prune", NET, "--macs", "50%", "--input", "1,5,32,32"), "shape"),
        (("prune", NET, *SHAPE, "--macs", "150%"), "more than"),
        (("prune", NET, *SHAPE, "--macs", "0.001%"), "smallest reachable"),
        (("prune", NET, *SHAPE, "--macs", "50%", "--target", "hots"), "host"),
        (("prune", "tests.small_net:nan_net", *SHAPE, "--macs", "50%"), "NaN"),
        (("prune", "tests.small_net:unexportable", "--input", "2,4", "--macs", "50%"), "small_net"),
        (("prune", NET, *SHAPE, "--macs", "50%", "--calibrate", "nowhere"), "nowhere"),
        (("prune", NET, *SHAPE, "--macs", "50%", "--mean", "0.5,x"), "--mean"),
        (("prune", NET, *SHAPE, "--macs", "50%", "--std", "0.5,0,0.5"), "positive"),
        (("prune", "missing.pt2", "--macs", "50%"), "missing.pt2"),
    ],
)
def test_mistakes_get_one_message(tmp_path, words, message) -> None:
    out = tmp_path / "out"
    done = hwprune(*words, "--out", str(out))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_an_output_that_cannot_be_written(tmp_path) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    done = hwprune("prune", NET, *SHAPE, "--macs", "50%", "--out", str(taken))
    assert done.returncode == 2
    assert "not a directory" in done.stderr
    assert taken.read_text() == "mine"


def test_a_corrupt_model_and_artifact(tmp_path) -> None:
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(b"not a zip")
    done = hwprune("inspect", str(bad))
    assert done.returncode == 2
    assert "bad.pt2" in done.stderr
    done = hwprune("run", str(tmp_path))
    assert done.returncode == 2
    assert "manifest.json" in done.stderr


def test_import_is_quick_and_light() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import hwprune; "
        "assert time.perf_counter() - t < 0.3; "
        "assert 'torch' not in sys.modules and 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Corrupt tables and artifacts: one message that names the file, exit status 2."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hwprune import cli
from hwprune.capture import capture
from hwprune.lower.spec import Workload
from hwprune.macs import macs
from hwprune.prepare import prepare
from hwprune.price import required
from hwprune.provenance import provenance_of
from hwprune.table import LatencyTable, Row, describe
from hwprune.target import load_target
from tests.command_line import LINEAR, NET, Done, refused
from tests.small_net import small_net


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    """A latency table of its own, with a row for every kernel of the network."""
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))
    target = load_target("host")
    program = capture(small_net(), (torch.zeros(1, 3, 32, 32),))
    prepared = prepare(program, target, 1)
    made = LatencyTable.open(provenance_of(target))
    kernels = required(prepared.sites, prepared.candidates)
    times = {kernel: 0.1 + macs(kernel) / 1e6 for kernel in kernels}
    made.put(Row(k, 1, us, 0.9 * us, 1.1 * us, 10) for k, us in times.items())
    made.close()
    return made


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        ("median_us = 'fast'", "'fast'"),
        ("median_us = -1.0", "-1.0"),
        ("p10_us = 99.0", "outside [99.0"),
        ("repeats = 'x'", "'x'"),
        ("source = 'guess'", "'guess'"),
    ],
)
def test_a_corrupt_row(
    run: Callable[..., Done],
    table: LatencyTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    part: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("long work was started")

    monkeypatch.setattr("hwprune.latency.build", fail)
    monkeypatch.setattr("hwprune.measure._time_batch", fail)
    with sqlite3.connect(table.path) as database:
        database.execute(f"UPDATE latency SET {damage} WHERE rowid = 3")
        key = database.execute("SELECT workload FROM latency WHERE rowid = 3").fetchone()[0]
    database.close()
    done = run("compile", *NET, "--latency", "50%", "--out", tmp_path / "out")
    refused(done, str(table.path), describe(Workload.from_key(key)), part, "delete the file")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\1" * 5000])
def test_a_table_that_is_no_database(
    run: Callable[..., Done], table: LatencyTable, tmp_path: Path, content: bytes
) -> None:
    for extra in ("-wal", "-shm"):
        Path(f"{table.path}{extra}").unlink(missing_ok=True)
    table.path.write_bytes(content)
    done = run("compile", *NET, "--latency", "50%", "--out", tmp_path / "out")
    refused(done, str(table.path), "delete the file to measure again")
    assert not (tmp_path / "out").exists()
    assert table.path.read_bytes() == content


@pytest.mark.usefixtures("no_work")
def test_a_cache_that_cannot_be_made(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "file"))
    done = run("profile", *NET)
    refused(done, "file", "set HWPRUNE_CACHE")


def test_a_latency_that_cannot_be_reached(
    run: Callable[..., Done], table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was measured")

    monkeypatch.setattr("hwprune.measure._time_batch", fail)
    done = run("compile", *NET, "--latency", "1ns", "--out", tmp_path / "out")
    refused(done, "latency", "smallest reachable", "ms", "raise the budget")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled network."""
    out = tmp_path_factory.mktemp("artifact") / "out"
    with pytest.raises(SystemExit) as end:
        cli.main(["lower", *LINEAR, "--out", str(out), "--json"])
    assert end.value.code == 0
    return out


def change_manifest(directory: Path, **changes: object) -> None:
    file = directory / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def drop_threads(directory: Path) -> None:
    file = directory / "manifest.json"
    file.write_text(file.read_text().replace('"threads"', '"thread"'))


def replace_library(directory: Path) -> None:
    content = b"no library"
    (directory / "model.so").write_bytes(content)
    change_manifest(directory, files={"model.so": hashlib.sha256(content).hexdigest()})


def truncate(name: str) -> Callable[[Path], object]:
    def cut(directory: Path) -> None:
        file = directory / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (truncate("manifest.json"), ("manifest.json", "not a valid manifest", "line")),
        (truncate("model.so"), ("model.so", "does not match its hash")),
        (lambda d: (d / "model.so").unlink(), ("model.so", "is missing")),
        (lambda d: (d / "manifest.json").unlink(), ("manifest.json", "not an artifact directory")),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), ("manifest.json",)),
        (lambda d: (d / "manifest.json").write_text("[" * 100_000), ("not a valid manifest",)),
        (lambda d: (d / "manifest.json").write_text("[]"), ("not a valid manifest",)),
        (drop_threads, ("manifest.json", "'threads' is missing")),
        (lambda d: change_manifest(d, threads=0), ("manifest.json", "0 threads")),
        (lambda d: change_manifest(d, format=7), ("format 7 is not the 1", "compile the model")),
        (lambda d: change_manifest(d, files={}), ("names no model.so",)),
        (lambda d: change_manifest(d, isa=["warp9"]), ("lacks: warp9",)),
        (
            lambda d: change_manifest(d, inputs=[{"name": "x", "shape": [2, 3], "dtype": "int8"}]),
            ("does not run as its manifest.json says",),
        ),
        (replace_library, ("model.so", "cannot be loaded")),
        (shutil.rmtree, ("manifest.json", "pass the --out of a compile")),
    ],
)
def test_a_corrupt_artifact(
    run: Callable[..., Done],
    artifact: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    parts: tuple[str, ...],
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(artifact, copied)
    damage(copied)
    refused(run("run", copied, "--repeats", "1"), *parts)

"""The table that ships with a GPU: what is measured, when it stops, how it comes to a target."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks import gpu_table
from hwprune.cuda_driver import Driver
from hwprune.errors import TargetError
from hwprune.measure_cuda import open_gpu
from hwprune.predict.fill import open_predicted, predict_rows
from hwprune.tables import read_document
from tests.test_measure_cuda import Open, fake, library  # noqa: F401


def parts(*dtypes: str) -> list[gpu_table.Part]:
    return gpu_table.plan_parts("nvidia-h200", ("mlp",), (8, 1), dtypes)


def test_a_plan_has_every_kernel_once_and_says_how_long_it_takes() -> None:
    found = parts("float16", "float32")
    assert [part.title for part in found] == [
        f"mlp, batch {batch}, {dtype}" for dtype in ("float16", "float32") for batch in (8, 1)
    ]
    every = [work for part in found for work in part.kernels]
    assert len(every) == len(set(every))
    assert {work.output.dtype for work in found[0].kernels} == {"float16"}
    for part in found:
        least_s = len(part.kernels) * (gpu_table.REPEATS + 1) * gpu_table.GRAPH_US / 1e6
        assert least_s < gpu_table.replays_s(part) < 2 * least_s


@pytest.mark.slow
def test_it_stops_in_time_goes_on_and_ships(
    fake: Open,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_table, "open_gpu", partial(open_gpu, driver=fake))
    monkeypatch.setattr(gpu_table, "AT_ONCE", 2)
    (part,) = parts("float16")[:1]
    kernels = part.kernels
    with gpu_table.open_gpu(part.target) as gpu:
        assert gpu_table.measure_until(gpu, kernels, time.monotonic()) == len(kernels)
    assert gpu_table.run([part], minutes=5.0) == 0
    out = tmp_path / "targets" / "nvidia-h200" / "table.txt"
    out.parent.mkdir(parents=True)
    assert gpu_table.write("nvidia-h200", out) == len(kernels)
    assert {entry.row.source for entry in read_document(out).entries} == {"device"}
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setenv("HWPRUNE_TARGETS", str(tmp_path / "targets"))
    with open_predicted(part.target) as table:
        done = predict_rows(kernels, part.target, 1, table)
    assert (done.measured, done.predicted) == (len(kernels), 0)


def test_without_a_gpu_it_is_said_before_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = partial(Driver, "libcuda-that-is-not-there.so.1")
    monkeypatch.setattr(gpu_table, "open_gpu", partial(open_gpu, driver=driver))
    monkeypatch.setattr(gpu_table, "plan_parts", None)
    with pytest.raises(TargetError, match="no NVIDIA driver"):
        gpu_table.main(["run"])

"""A GPU's table judged: what a model says of kernels that it has not seen, and interpolation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu_held_out
from hwprune.dtype import in_dtype
from hwprune.errors import TableError
from hwprune.lower.spec import Workload
from hwprune.predict.fill import predict
from hwprune.provenance import provenance_of
from hwprune.table import Row
from hwprune.tables import Document, Entry, Origin, write_document
from hwprune.target import load_target
from tests.test_predict_gpu import conv

H200 = load_target("nvidia-h200")
HALF = in_dtype(H200, "float16")
WIDTHS = (64, 96, 128, 160)
KERNELS = [conv(c, out, size, 1) for c in (64, 96, 128, 192, 256) for size in (7, 14, 28, 56, 112)
           for out in WIDTHS]  # fmt: skip


def table(us: dict[Workload, float]) -> Document:
    today = provenance_of(HALF)
    origin = Origin("gpu-h200", today.toolchain, today.schedule)
    rows = [Row(work, 1, t, t, t, 9, date="2026") for work, t in us.items()]
    return Document.of(H200.name, [Entry(origin, row) for row in rows])


def test_a_table_like_the_model_is_predicted_from_its_half(tmp_path: Path) -> None:
    document = table({work: 2.0 * predict(work, HALF, 1).median_us for work in KERNELS})
    first, second = gpu_held_out.halves(document)
    assert len(first.entries) + len(second.entries) == len(KERNELS)
    assert min(len(first.entries), len(second.entries)) >= 40
    write_document(document, tmp_path / "table.txt")
    gpu_held_out.main([str(tmp_path / "table.txt"), "--out", str(tmp_path / "out.json")])
    model, between = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (model["kernels"], between["kernels"]) == (len(KERNELS), len(KERNELS) // 2)
    assert model["mape_percent"] < 10


def test_what_lies_on_a_line_is_interpolated_and_a_step_is_not() -> None:
    line = table({conv(64, out, 14, 1): float(out) for out in WIDTHS})
    assert gpu_held_out.interpolation_errors(line) == pytest.approx([0.0, 0.0])
    step = table({conv(64, out, 14, 1): 1.0 + (out > 96) for out in WIDTHS})
    assert gpu_held_out.interpolation_errors(step) == pytest.approx([0.5, -0.25])


def test_rows_of_a_model_or_of_other_schedules_do_not_count() -> None:
    document = table({conv(64, 64, 14, 1): 5.0})
    (entry,) = document.entries
    assert gpu_held_out.measured(document, H200) == document
    for other in (
        replace(entry, row=replace(entry.row, source="model")),
        replace(entry, origin=replace(entry.origin, schedule="of last year")),
    ):
        with pytest.raises(TableError, match="no measured rows of today's schedules"):
            gpu_held_out.measured(Document.of(H200.name, [other]), H200)

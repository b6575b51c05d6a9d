"""Tables as text: the same rows back, every change of a line refused, merging, the store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwprune.cli import main
from hwprune.dtype import in_dtype
from hwprune.errors import TableError
from hwprune.lower.spec import PACKED, TensorSpec, Workload
from hwprune.predict.fill import open_predicted, predict_rows
from hwprune.provenance import provenance_of
from hwprune.report.staircase import draw_staircases
from hwprune.table import Row
from hwprune.tables import Document, Entry, Origin, diff, merge, read_document, to_text
from hwprune.tables.staircase import staircases
from hwprune.tables.store import bring_in, export
from hwprune.tables.text import parse, write_document
from hwprune.target import load_target

BOARD = Origin("aarch64-board", "tvm 1 cortex-a72 abc", "schedule1")
OTHER = Origin("aarch64-other", "tvm 2 cortex-a72 abc", "schedule1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))


def conv(out: int, channels: int = 64) -> Workload:
    return Workload(
        "conv2d",
        (TensorSpec((1, channels, 14, 14), layout=PACKED),),
        TensorSpec((1, out, 14, 14), layout=PACKED),
        (TensorSpec((out, channels, 1, 1)), TensorSpec((out,))),
        (("dilation", (1, 1)), ("padding", (0, 0, 0, 0)), ("stride", (1, 1))),
    )


def row(out: int, us: float = 10.1, **more: object) -> Row:
    made = Row(conv(out), 2, us, 0.9 * us, 1.1 * us, 20, versions="v 1", date="2026-01-01")
    return replace(made, **more)  # type: ignore[arg-type]


def document(*rows: Row, origin: Origin = BOARD) -> Document:
    return Document.of("cortex-a72", [Entry(origin, r) for r in rows])


def test_text_holds_everything_and_is_sorted(tmp_path: Path) -> None:
    nan = float("nan")
    failed = Row(conv(48), 2, nan, nan, nan, 0, failure="it\tcrashed\nbadly", date="2026-01-02")
    given = document(row(32, 1 / 3), row(16), failed)
    write_document(given, tmp_path / "table.txt")
    found = read_document(tmp_path / "table.txt")
    assert [e.row for e in found.entries if not e.row.failure] == [
        e.row for e in given.entries if not e.row.failure
    ]
    assert [e.row.failure for e in found.entries if e.row.failure] == ["it crashed badly"]
    assert to_text(found) == (tmp_path / "table.txt").read_text()
    again = document(failed, row(16), row(32, 1 / 3))
    assert to_text(again) == to_text(given)  # whatever the order they came in
    one = to_text(document(row(16), row(32, 1 / 3), row(64))).splitlines()
    more = set(one) - set(to_text(document(row(16), row(32, 1 / 3))).splitlines())
    assert len(more) == 2  # a row more is a line more, and the checksum


def test_every_change_is_refused_with_its_line() -> None:
    text = to_text(merge([document(row(16), row(32)), document(row(16), origin=OTHER)]))
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        for changed in (line.replace("1", "7", 1), line[:-1], line + "\t", ""):
            if changed == line:
                continue
            broken = "\n".join([*lines[: number - 1], changed, *lines[number:]]) + "\n"
            with pytest.raises(TableError) as error:
                parse(broken, "a.txt")
            assert str(error.value).startswith("a.txt:"), changed


def test_a_changed_row_is_named(tmp_path: Path) -> None:
    lines = to_text(document(row(16), row(32), row(48))).splitlines()
    at = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    faster = [*lines]
    faster[at + 1] = faster[at + 1].replace("10.1", "5.1")
    with pytest.raises(TableError, match=rf"a:{at + 2}: was changed"):
        parse("\n".join(faster), "a")
    with pytest.raises(TableError, match=rf"a:{at + 2}: is not in its place"):
        parse("\n".join([*lines[: at + 1], lines[at], *lines[at + 2 :]]), "a")
    with pytest.raises(TableError, match=r"a:2: .*lines are missing"):
        parse("\n".join(lines[:-1]), "a")
    with pytest.raises(TableError, match="a:1: is no latency table"):
        parse("model,ms\n", "a")
    outside = [line.replace("aarch64-board", "../up") for line in lines]
    with pytest.raises(TableError, match="a:5: is not the line of origin 1"):
        parse("\n".join(outside), "a")


def test_merging_keeps_origins_apart_and_the_better_row() -> None:
    device = row(16, 10.0)
    modelled = row(16, 99.0, source="model", date="2027-01-01")
    later = row(16, 11.0, date="2026-06-01")
    assert merge([document(modelled), document(device)]).entries[0].row == device
    assert merge([document(device), document(later)]).entries[0].row == later
    both = merge([document(device), document(row(16, 3.0), origin=OTHER)])
    assert both.origins == (BOARD, OTHER)
    assert both.rows(BOARD.toolchain, BOARD.schedule)[device.workload.key(), 2] == device
    assert both.rows("tvm 3", BOARD.schedule) == {}
    with pytest.raises(TableError, match="different targets"):
        merge([document(device), replace(document(device), target="host")])
    with pytest.raises(TableError, match="twice"):
        document(device, later)


def test_diff_tells_added_removed_and_changed() -> None:
    before, after = document(row(16), row(32)), document(row(32, 10.2), row(48))
    changes = diff(before, after)
    assert [(c.before is None, c.after is None) for c in changes].count((False, False)) == 1
    assert len(changes) == 3
    assert len(diff(before, after, tolerance=0.05)) == 2
    assert diff(before, before) == ()
    modelled = document(*(replace(e.row, source="model") for e in before.entries))
    assert len(diff(before, modelled, tolerance=1.0)) == 2  # a source is never alike


def test_the_store_takes_a_file_and_gives_it_back() -> None:
    target = load_target("cortex-a72")
    today = provenance_of(target)
    mine = Origin("aarch64-mine", today.toolchain, today.schedule)
    given = merge([document(row(16), row(32), origin=mine), document(row(16), origin=OTHER)])
    assert bring_in(given) == (3, 0)
    assert bring_in(given) == (0, 3)
    assert export("cortex-a72").origins == (mine,)
    assert to_text(export("cortex-a72", every=True)) == to_text(given)
    with pytest.raises(TableError, match="no rows of this target"):
        export("cortex-a53")
    with open_predicted(target) as table:  # what was imported is used before a model is
        done = predict_rows([conv(16), conv(64)], target, 2, table)
        assert (done.measured, done.predicted) == (1, 1)
    assert len(export("cortex-a72", models=True).entries) > len(export("cortex-a72").entries)


def test_rows_of_all_types_are_exported() -> None:
    """A GPU's rows of float16 have a toolchain of their own, and are today's as well."""
    target = load_target("nvidia-h200")
    origins = []
    for dtype in ("float32", "float16"):
        known = provenance_of(in_dtype(target, dtype))
        origins.append(Origin("gpu-h200", known.toolchain, known.schedule))
    assert origins[0] != origins[1]
    old = replace(origins[0], schedule="of last year")
    given = [document(row(16), origin=o) for o in (*origins, old)]
    bring_in(merge([replace(d, target=target.name) for d in given]))
    assert set(export(target.name).origins) == set(origins)
    assert len(export(target.name, every=True).origins) == 3


def test_a_table_that_ships_with_a_target_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target("cortex-a72")
    today = provenance_of(target)
    origin = Origin("aarch64-ships", today.toolchain, today.schedule)
    folder = tmp_path / "targets" / "cortex-a72"
    folder.mkdir(parents=True)
    write_document(document(row(16, 42.0), origin=origin), folder / "table.txt")
    monkeypatch.setenv("HWPRUNE_TARGETS", str(tmp_path / "targets"))
    with open_predicted(target) as table:
        assert predict_rows([conv(16)], target, 2, table).measured == 1
        assert table.latency_us(conv(16), 2) == 42.0
    write_document(replace(document(row(16)), target="cortex-a53"), folder / "table.txt")
    with open_predicted(target) as table:
        with pytest.raises(TableError, match="of target 'cortex-a53'"):
            predict_rows([conv(32)], target, 2, table)


def test_staircases_are_rows_of_one_kernel_in_several_widths() -> None:
    steps = [row(out, 5.0 + out // 16) for out in (8, 16, 24, 48)]
    narrow = Row(conv(16, channels=32), 2, 1.0, 1.0, 1.0, 3)
    (found,) = staircases(document(*steps, narrow))
    assert found.widths == (8, 16, 24, 48)
    picture = draw_staircases([found])
    assert picture.startswith("<?xml")
    assert "output channels" in picture
    assert draw_staircases([found]) == picture


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object, status: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            main(["tables", *map(str, words)])
        assert end.value.code == status
        said = capsys.readouterr()
        return said.err if status == 2 else said.out

    first, second, out = (tmp_path / f"{name}.txt" for name in ("a", "b", "c"))
    write_document(document(row(16), row(32), row(48)), first)
    write_document(document(row(16), row(32, 20.0)), second)
    assert json.loads(run("merge", first, second, "-o", out, "--json"))["rows"] == 3
    assert run("check", first, out).count("nothing wrong") == 2
    assert "2 differences" in run("diff", first, second, status=1)
    assert "0 differences" in run("diff", first, first)
    assert json.loads(run("import", out, "--json")) == {"imported": 3, "kept": 0}
    sent = tmp_path / "sent.txt"
    run("export", "--target", "cortex-a72", "--every", "-o", sent)
    assert sent.read_text() == out.read_text()
    plot = tmp_path / "plot.svg"
    shown = json.loads(run("show", out, "--plot", plot, "--json"))
    assert shown["origins"][0]["device"] == 3
    assert plot.read_text().startswith("<?xml")
    assert "at least 40" in run("calibrate", out, "-o", tmp_path / "model.json", status=2)
    first.write_text(first.read_text().replace("10.1", "1.1", 1))
    for command in ("check", "import", "show"):
        refusal = run(command, first, status=2)
        assert refusal.startswith(f"error: {first}:")
        assert "Traceback" not in refusal

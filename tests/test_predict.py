"""Prediction of kernels: work counted, coefficients found again, intervals, files, rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwprune.errors import HwpruneError, TableError, TargetError
from hwprune.lower.spec import PACKED, TensorSpec, Workload
from hwprune.predict.calibration import OURS, TVM, Calibrated, find_model
from hwprune.predict.conv_shape import ConvShape
from hwprune.predict.divided import divided_work, divisors_tile
from hwprune.predict.fill import MODEL, open_predicted, predict, predict_rows
from hwprune.predict.fit import fit_coefficients
from hwprune.predict.generic import described_model
from hwprune.predict.machine import Machine
from hwprune.predict.model import LatencyModel, Sample, cross_validate
from hwprune.predict.network import NetworkModel, NetworkTerms
from hwprune.predict.own import calibrate
from hwprune.predict.planned import planned_works
from hwprune.predict.published import COLUMNS, read_convolutions
from hwprune.predict.residual import Residual
from hwprune.predict.work import DEPTHWISE, DIRECT, TERMS, WINOGRAD, Terms
from hwprune.provenance import provenance_of
from hwprune.table import LatencyTable, Row
from hwprune.tables import Document, Entry, Origin
from hwprune.target import Target, load_target


@pytest.fixture
def a72() -> Target:
    return load_target("cortex-a72")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))


def conv(
    channels: int, out: int, size: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> Workload:
    pad, made = kernel // 2, -(-size // stride)
    return Workload(
        "conv2d",
        (TensorSpec((1, channels, size, size), layout=PACKED),),
        TensorSpec((1, out, made, made), layout=PACKED),
        (TensorSpec((out, channels // groups, kernel, kernel)),),
        (("dilation", (1, 1)), ("padding", (pad,) * 4), ("stride", (stride, stride))),
    )


def shape(channels: int, out: int, size: int, kernel: int = 1, groups: int = 1) -> ConvShape:
    border = size + kernel - 1
    return ConvShape(1, channels, out, border, border, size, size, kernel, kernel, 1, groups)


def test_machine_needs_a_description(a72: Target) -> None:
    assert Machine.of(a72, 2).kind == "out-of-order"
    assert Machine.of(load_target("cortex-a53"), 1).kind == "in-order"
    with pytest.raises(TargetError, match=r"lacks \[core\]"):
        Machine.of(replace(a72, core=None), 1)
    with pytest.raises(TargetError, match=r"cores\.clock_hz"):
        Machine.of(replace(a72, clock_hz=None), 1)
    with pytest.raises(TargetError, match="--threads 4"):
        Machine.of(a72, 5)


def test_tiles_of_prime_planes_are_poor(a72: Target) -> None:
    machine = Machine.of(a72, 1)
    good, poor = (divisors_tile(128, size, size, 128, machine) for size in (16, 17))
    assert good.multiply == poor.multiply == pytest.approx(1 / machine.lanes)
    assert poor.load > 1.3 * good.load
    alone = divisors_tile(8, 16, 16, 128, replace(machine, threads=4))
    assert alone.multiply > good.multiply  # two vectors for four threads


def test_work_counts_what_the_shape_says(a72: Target) -> None:
    machine = Machine.of(a72, 1)
    given = shape(64, 128, 14)
    work = divided_work(given, DIRECT, machine)
    assert work.multiply_vectors == pytest.approx(given.macs / machine.lanes)
    assert (work.arranged, work.weight_bytes) == (0, 4 * 64 * 128)
    spread = divided_work(shape(64, 128, 16, kernel=3), WINOGRAD, machine)
    assert spread.multiply_vectors == pytest.approx(36 * 16 * 64 * 128 / machine.lanes)
    assert spread.weight_bytes == 4 * 64 * 128 * 36
    assert divided_work(shape(64, 64, 14, 3, 64), DEPTHWISE, machine).algorithm == DEPTHWISE


@pytest.mark.parametrize(
    ("workload", "algorithms"),
    [
        (conv(64, 128, 28, kernel=1), (DIRECT,)),
        (conv(128, 128, 56), (WINOGRAD,)),
        (conv(96, 96, 28, groups=96), (DEPTHWISE,)),
    ],
)
def test_planned_work_is_of_the_rule_that_runs(
    a72: Target, workload: Workload, algorithms: tuple[str, ...]
) -> None:
    works = planned_works(workload, a72, 1)
    assert tuple(work.algorithm for work in works) == algorithms
    wide = conv(64, 128, 28, kernel=1)
    (work,) = planned_works(wide, a72, 1)
    assert work.multiply_vectors == 64 * 128 * 28 * 28 / a72.lanes
    (tail,) = planned_works(conv(64, 121, 28, kernel=1), a72, 1)
    assert tail.multiply_vectors == 64 * 124 * 28 * 28 / a72.lanes  # whole vectors of channels


def synthetic(machine: Machine, noise: float = 0.0) -> tuple[list[Sample], np.ndarray]:
    """Samples whose times are known coefficients times their terms."""
    truth = np.array([1.3, 0.6, 0.2, 1.5, 1.2, 2.0, 1.0, 0.7])
    random = np.random.default_rng(0)
    samples = []
    for channels in (16, 24, 48, 96, 160, 320):
        for out in (16, 40, 96, 192, 384):
            for size in (7, 14, 17, 28, 56):
                work = divided_work(shape(channels, out, size), DIRECT, machine)
                us = float(work.terms(machine).array() @ truth * np.exp(noise * random.normal()))
                samples.append(Sample(work, us, f"{channels} {out} {size}"))
    return samples, truth


def test_fit_finds_what_made_the_rows_and_ignores_outliers(a72: Target) -> None:
    machine = Machine.of(a72, 2)
    samples, truth = synthetic(machine)
    terms = np.array([s.work.terms(machine).array() for s in samples])
    measured = np.array([s.measured_us for s in samples])
    measured[::25] *= 4  # disturbed
    found = fit_coefficients(terms, measured, np.ones(len(TERMS)))
    assert found[1] == pytest.approx(truth[1], rel=0.05)
    kept = np.arange(len(measured)) % 25 != 0
    off = np.abs((terms @ found)[kept] / measured[kept] - 1)
    assert np.median(off) < 0.005
    assert off.max() < 0.1  # a prior of one for launches of 0.7: the smallest kernels feel it
    with pytest.raises(ValueError, match="positive"):
        fit_coefficients(terms, -measured, np.ones(len(TERMS)))


def test_residual_is_near_its_rows_and_nothing_far_away() -> None:
    traits = np.array([[float(i), 0.0] for i in range(12)])
    logs = np.where(np.arange(12) < 6, 0.2, -0.2)
    found = Residual.fit(traits, logs)
    assert np.sign(found.at(traits)) == pytest.approx(np.sign(logs))
    assert abs(found.at(np.array([[500.0, 0.0]]))[0]) < 1e-3
    again = Residual.from_json(json.loads(json.dumps(found.to_json())))
    assert again.at(traits) == pytest.approx(found.at(traits), abs=1e-3)


def test_cross_validation_never_sees_the_layer_it_predicts(a72: Target) -> None:
    """A layer that is off by itself stays off: its own rows would have taught the residual."""
    machine = Machine.of(a72, 2)
    samples, _ = synthetic(machine)
    odd = [replace(s, measured_us=s.measured_us * 1.4) if i == 40 else s
           for i, s in enumerate(samples)]  # fmt: skip
    twice = [*odd, odd[40]]  # the same layer in two rows
    predicted = cross_validate(twice, machine, described_model())
    assert predicted[40] == predicted[-1]
    assert predicted[40] < 0.85 * odd[40].measured_us
    together = LatencyModel.fit(twice, machine, described_model())
    assert together.median_us([odd[40].work], machine)[0] > 1.05 * predicted[40]


def test_interval_holds_four_of_five(a72: Target) -> None:
    machine = Machine.of(a72, 2)
    samples, _ = synthetic(machine, noise=0.1)
    model = LatencyModel.fit(samples[::2], machine, described_model())
    held = 0
    for sample in samples[1::2]:
        found = model.bounded(float(model.median_us([sample.work], machine)[0]))
        held += found.low_us <= sample.measured_us <= found.high_us
    assert 0.65 < held / len(samples[1::2]) < 0.92
    with pytest.raises(ValueError, match="at least"):
        LatencyModel.fit(samples[:3], machine, described_model())


def test_networks_are_calibrated_on_end_to_end_runs() -> None:
    random = np.random.default_rng(1)
    terms = [NetworkTerms(*(random.uniform(1e3, 1e5, 5))) for _ in range(10)]
    truth = NetworkModel(1.3, 0.8, 0.5, 2.0, 1.0)
    found = NetworkModel.fit(terms, [truth.us(t) for t in terms])
    for term in terms:
        assert found.us(term) == pytest.approx(truth.us(term), rel=0.02)


def calibrated(schedules: str, **changes: object) -> Calibrated:
    model = replace(described_model(), interval=(-0.1, 0.2))
    return replace(Calibrated(model, "mine", schedules, "a test", 9, (-0.7, 0.7)), **changes)


def test_calibration_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    residual = Residual(np.ones((3, 2)), np.array([0.1, 0.2, 0.3]), 2.0, 0.01, 0.001)
    given = calibrated(OURS, model=replace(described_model(), residual=residual))
    given.save(path)
    found = Calibrated.load(path)
    assert found.describe() == given.describe()
    assert found.model.residual is not None
    assert found.to_json() == given.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "hwprune latency model 9"}, "its format is"),
        ({"terms": ["multiply"]}, "its terms are not"),
        ({"schedules": "yours"}, "neither"),
        ({"coefficients": {}}, "lacks 'direct'"),
        ({"interval": [0.1, 0.2]}, "does not hold 0"),
        ({"interval": "wide"}, "is no calibration"),
    ],
)
def test_malformed_calibrations_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(calibrated(TVM).to_json()) | change))
    with pytest.raises(TableError, match=message) as error:
        Calibrated.load(path)
    assert str(path) in str(error.value)
    path.write_text("{")
    with pytest.raises(TableError, match="cannot be read"):
        Calibrated.load(path)


def test_a_target_without_calibration_has_that_of_its_class(
    a72: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = find_model(a72, Machine.of(a72, 1))
    assert own.target == a72.name
    assert own.model.interval == own.transfer  # not of our schedules
    a76 = load_target("cortex-a76")
    other = find_model(a76, Machine.of(a76, 1))
    assert "cortex-a76 itself is not calibrated: generic out-of-order" in other.describe()
    assert other.model.interval == other.transfer
    folder = tmp_path / "cortex-a76"
    folder.mkdir()
    calibrated(OURS, target="cortex-a76").save(folder / "model.json")
    monkeypatch.setenv("HWPRUNE_TARGETS", str(tmp_path))
    mine = find_model(a76, Machine.of(a76, 1))
    assert mine.model.interval == (-0.1, 0.2)
    assert "hwprune's kernels on cortex-a76" in mine.describe()


def test_predictions_grow_with_the_work_and_shrink_with_threads(a72: Target) -> None:
    small, large = (predict(conv(c, 128, 28, 1), a72, 1) for c in (64, 256))
    assert small.low_us < small.median_us < small.high_us
    assert 3 < large.median_us / small.median_us < 4.5
    assert predict(conv(256, 128, 28, 1), a72, 4).median_us < 0.5 * large.median_us
    flops = 2 * 256 * 128 * 28 * 28 / large.median_us * 1e6
    assert 0.3 < flops / (8 * 1.5e9) < 1.0  # of the core's peak


def test_rows_say_model_and_a_board_comes_first(a72: Target) -> None:
    wanted = [conv(64, 64, 14, 1), conv(64, 96, 14, 1)]
    with open_predicted(a72) as table:
        done = predict_rows(wanted, a72, 1, table)
        assert (done.predicted, done.measured, done.reused, done.failed) == (2, 0, 0, ())
        rows = [table.get(w, 1) for w in wanted]
        assert all(row is not None and row.source == MODEL and row.repeats == 0 for row in rows)
        board = replace(provenance_of(a72), fingerprint="aarch64-board")
        with LatencyTable.open(board) as measured:
            measured.put([Row(wanted[0], 1, 50.0, 49.0, 51.0, 20)])
        again = predict_rows(wanted, a72, 1, table)
        assert (again.predicted, again.measured, again.reused) == (0, 1, 1)
        first, second = (table.get(w, 1) for w in wanted)
        assert first is not None
        assert second is not None
        assert (first.source, first.median_us) == ("device", 50.0)
        assert "board aarch64-board" in first.versions
        assert second.source == MODEL
        stale = replace(board, fingerprint="aarch64-stale", schedule="another")
        with LatencyTable.open(stale) as old:
            old.put([Row(wanted[1], 1, 7.0, 6.0, 8.0, 20)])
        assert predict_rows(wanted, a72, 1, table).measured == 0  # of other schedules


def test_published_tables_are_read_and_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    good = 'rk,aarch64,conv2d_nchw_winograd.arm_cpu,1,64,64,56,56,3,3,1,"[1,1,1,1]",1,2.5'
    path.write_text(",".join(COLUMNS) + f"\n{good}\n")
    (row,) = read_convolutions(path)
    assert (row.algorithm, row.measured_us, row.shape.out_height) == (WINOGRAD, 2500.0, 56)
    for bad in (good.replace("2.5", "-1"), good.replace(",64,64,", ",64,x,"), "rk,aarch64"):
        path.write_text(",".join(COLUMNS) + f"\n{good}\n{bad}\n")
        with pytest.raises(TableError, match=r"table\.csv:3"):
            read_convolutions(path)
    path.write_text("model,abi\n")
    with pytest.raises(TableError, match="lacks the columns"):
        read_convolutions(path)
    with pytest.raises(HwpruneError, match="cannot be read"):
        read_convolutions(tmp_path / "none.csv")


def test_terms_are_named_in_order() -> None:
    assert tuple(Terms(*range(8)).array()) == tuple(range(8))
    assert len(TERMS) == 8
    assert not any(math.isnan(x) for x in described_model().coefficients[DIRECT])


def test_a_board_teaches_the_model_its_own_kernels(
    a72: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of a core unlike the one described are predicted for widths that it never ran."""
    today, machine = provenance_of(a72), Machine.of(a72, 1)
    origin = Origin("aarch64-mine", today.toolchain, today.schedule)
    truth = np.array([0.9, 1.1, 0.5, 1.0, 2.0, 1.0, 0.7, 0.4])

    def us(workload: Workload) -> float:
        return float(planned_works(workload, a72, 1)[0].terms(machine).array() @ truth)

    kernels = [
        conv(channels, out, size, 1)
        for channels in (32, 64, 128, 256) for out in (24, 64, 96, 160) for size in (7, 14, 28)
    ]  # fmt: skip
    rows = [Row(w, 1, us(w), us(w), us(w), 9, date="2026") for w in kernels]
    document = Document.of("cortex-a72", [Entry(origin, row) for row in rows])
    found = calibrate(document, a72)
    assert (found.schedules, found.rows) == (OURS, len(kernels))
    folder = tmp_path / "cortex-a72"
    folder.mkdir()
    found.save(folder / "model.json")
    monkeypatch.setenv("HWPRUNE_TARGETS", str(tmp_path))
    for workload in (conv(96, 48, 14, 1), conv(192, 120, 28, 1), conv(48, 80, 7, 1)):
        predicted = predict(workload, a72, 1)
        assert predicted.median_us == pytest.approx(us(workload), rel=0.06)
    few = Document.of("cortex-a72", document.entries[:10])
    with pytest.raises(TableError, match="at least 40"):
        calibrate(few, a72)

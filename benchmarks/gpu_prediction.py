"""Predicted against measured convolutions of a GPU, from published tables.

    python -m benchmarks.gpu_prediction --conv CSV --core jetson-tx2 [--fit | --no-fit]
        [--device NAME] [--save FILE] [--out FILE]

The columns of --conv are those of `hwprune.predict.published`; `--core` is a target with `[gpu]`.
With --fit (the default) the model is calibrated on the rows and judged by ten-fold
cross-validation by layer, and with all convolutions of one plane and kernel left out together. With
--no-fit the target's stored calibration, or its described rates, predict all rows. --save stores
the calibration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.arm_prediction import FOLDS, Row, errors, proportional
from hwprune.errors import HwpruneError, TableError, TargetError
from hwprune.gpu import Gpu
from hwprune.predict.calibration import TVM, Calibrated, find_model
from hwprune.predict.gpu_described import described_gpu_model
from hwprune.predict.gpu_divided import gpu_divided_work
from hwprune.predict.gpu_work import GPU_ALGORITHMS
from hwprune.predict.model import FEWEST, LatencyModel, Sample, cross_validate
from hwprune.predict.published import MeasuredConv, read_convolutions
from hwprune.target import Target, load_target

DEVICES = {"jetson-tx2": "tx2"}  # names of targets in published tables
ABI = "cuda"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__, "the first 60 rows only")
    parser.add_argument("--conv", type=Path, required=True, metavar="CSV")
    parser.add_argument("--core", required=True, help="a target: jetson-tx2")
    parser.add_argument("--fit", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", help="the rows of this `model`; by default the target's")
    parser.add_argument("--save", type=Path, metavar="FILE", help="store the calibration")
    try:
        return run(parser.parse_args(arguments))
    except HwpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    target = load_target(options.core)
    if target.gpu is None:
        raise TargetError("is no GPU", where=f"--core {options.core}", hint="see hwprune targets")
    rows = rows_of(read_convolutions(options.conv), options)
    samples = [
        Sample(gpu_divided_work(r.shape, r.algorithm, target.gpu), r.measured_us, r.layer)
        for r in rows
    ]
    table = validate(samples, rows, target, target.gpu, fit=options.fit)
    common.table(
        f"{rows[0].device} ({options.core}): convolutions, predicted against measured",
        ("how", "kernels", "rows", "MAPE %", "p95 %", "rank"),
        [
            (r["way"], r["kernels"], str(r["count"]), f"{r['mape_percent']:.1f}",
             f"{r['p95_percent']:.1f}", str(r["rank_correlation"]))
            for r in table
        ],
        text=2,
    )  # fmt: skip
    if options.save is not None and options.fit:
        calibrated(samples, rows[0].device, target, target.gpu).save(options.save)
        common.console.print(f"calibration written to {options.save}")
    common.finish(options.out, table, ("scipy",), {"core": options.core, "fit": options.fit})
    return 0


def rows_of(every: Sequence[MeasuredConv], options: argparse.Namespace) -> Sequence[MeasuredConv]:
    """The rows of one GPU. Raises TableError where there are none, or too few to calibrate on."""
    name = options.device or DEVICES.get(options.core, options.core)
    rows = [row for row in every if row.device == name and row.abi == ABI]
    if not rows:
        known = sorted({row.device for row in every if row.abi == ABI})
        raise TableError(
            f"has no rows of {name!r}",
            where=str(options.conv),
            hint=f"pass --device; its GPUs: {', '.join(known) or 'none'}",
        )
    if options.fit and len(rows) < FEWEST:
        raise TableError(f"{len(rows)} rows: at least {FEWEST} are needed", where="--fit")
    return rows[:60] if options.quick else rows


def validate(
    samples: Sequence[Sample],
    rows: Sequence[MeasuredConv],
    target: Target,
    gpu: Gpu,
    *,
    fit: bool,
) -> list[Row]:
    """A row of errors for every way to judge, and for every algorithm."""
    prior = described_gpu_model()
    families = [replace(s, layer=r.family) for s, r in zip(samples, rows, strict=True)]
    ways: dict[str, Callable[[], np.ndarray]] = {
        "proportional to MACs": lambda: proportional(samples, rows)
    }
    if fit:
        ways |= {
            "cross-validated by layer": lambda: cross_validate(samples, gpu, prior, folds=FOLDS),
            "the same, without smoothing": lambda: cross_validate(
                samples, gpu, prior, folds=FOLDS, smooth=False
            ),
            "cross-validated by plane and kernel": lambda: cross_validate(
                families, gpu, prior, folds=FOLDS
            ),
        }
    else:
        model = find_model(target, gpu).model
        ways["stored or described"] = lambda: model.median_us([s.work for s in samples], gpu)
    measured = np.array([s.measured_us for s in samples])
    kinds = np.array([s.work.algorithm for s in samples])
    found = []
    for way, predict in ways.items():
        predicted = predict()
        for kind in ("all", *(k for k in GPU_ALGORITHMS if (kinds == k).any())):
            of = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
            found.append({"way": way, "kernels": kind} | errors(predicted[of], measured[of]))
    return found


def calibrated(samples: Sequence[Sample], device: str, target: Target, gpu: Gpu) -> Calibrated:
    """The coefficients, without the residual, which is of TVM's schedules only."""
    prior = described_gpu_model()
    model = LatencyModel.fit(samples, gpu, prior, smooth=False)
    source = f"published table of {device}"
    return Calibrated(model, target.name, TVM, source, len(samples), prior.interval)


if __name__ == "__main__":
    sys.exit(main())

"""What the validations of predictions share: options, ways to judge, errors, the table they print.

In: measured convolutions of published tables as `Sample`s, and the device that they are of. Out:
rows of errors, one for every way to judge and every algorithm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks import common
from hwprune.errors import HwpruneError, TableError
from hwprune.predict.device import Device, described
from hwprune.predict.model import FEWEST, LatencyModel, Sample, cross_validate
from hwprune.predict.published import MeasuredConv

FOLDS = 10
QUICK = 60  # rows that --quick looks at
Row = dict[str, Any]
Ways = Mapping[str, Callable[[], np.ndarray]]  # by name: predicted microseconds of every sample


def parser(doc: str, core: str, device: str) -> argparse.ArgumentParser:
    """The options that both have; `core` and `device` describe theirs."""
    made = common.parser(doc, f"the first {QUICK} rows only")
    made.add_argument("--conv", type=Path, required=True, metavar="CSV")
    made.add_argument("--core", required=True, help=f"a target: {core}")
    made.add_argument("--fit", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--device", help=f"the rows of this `model`; by default {device}")
    made.add_argument("--save", type=Path, metavar="FILE", help="store the calibration")
    return made


def exit_status(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """What `run` returns; 2 with one message where the input is bad."""
    try:
        return run(options)
    except HwpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check_enough(rows: Sequence[object]) -> None:
    """Raise TableError where there are too few rows to calibrate on."""
    if len(rows) < FEWEST:
        raise TableError(f"{len(rows)} rows: at least {FEWEST} are needed", where="--fit")


def fit_ways(samples: Sequence[Sample], rows: Sequence[MeasuredConv], device: Device) -> Ways:
    """Calibrations that are judged by what they have not seen."""
    prior = described(device)
    families = [replace(s, layer=r.family) for s, r in zip(samples, rows, strict=True)]
    return {
        "cross-validated by layer": lambda: cross_validate(samples, device, prior, folds=FOLDS),
        "the same, without smoothing": lambda: cross_validate(
            samples, device, prior, folds=FOLDS, smooth=False
        ),
        "cross-validated by plane and kernel": lambda: cross_validate(
            families, device, prior, folds=FOLDS
        ),
    }


def model_way(name: str, model: LatencyModel, samples: Sequence[Sample], device: Device) -> Ways:
    """A model that is there already."""
    return {name: lambda: model.median_us([s.work for s in samples], device)}


def judge(
    ways: Ways, samples: Sequence[Sample], rows: Sequence[MeasuredConv], device: Device
) -> list[Row]:
    """A row of errors for every way, counting multiply-accumulates first, and every algorithm."""
    counted: Ways = {"proportional to MACs": lambda: proportional(samples, rows)}
    measured = np.array([s.measured_us for s in samples])
    kinds = np.array([s.work.algorithm for s in samples])
    found = []
    for way, predict in {**counted, **ways}.items():
        predicted = predict()
        for kind in ("all", *(k for k in described(device).coefficients if (kinds == k).any())):
            of = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
            found.append({"way": way, "kernels": kind} | errors(predicted[of], measured[of]))
    return found


def proportional(samples: Sequence[Sample], rows: Sequence[MeasuredConv]) -> np.ndarray:
    """What counting multiply-accumulates says, one rate an algorithm: the median of all rows."""
    macs = np.array([row.shape.macs for row in rows], dtype=float)
    measured = np.array([s.measured_us for s in samples])
    kinds = np.array([s.work.algorithm for s in samples])
    rates = {k: float(np.median(measured[kinds == k] / macs[kinds == k])) for k in set(kinds)}
    return np.array([rates[k] for k in kinds]) * macs


def errors(predicted: np.ndarray, measured: np.ndarray) -> Row:
    """Mean absolute percentage error, its 95th percentile, Spearman's rank correlation."""
    off = 100 * np.abs(predicted / measured - 1)
    rank = float(spearmanr(predicted, measured).statistic) if len(off) > 2 else None
    return {
        "count": len(off),
        "mape_percent": round(float(off.mean()), 2),
        "p95_percent": round(float(np.quantile(off, 0.95)), 2),
        "rank_correlation": None if rank is None else round(rank, 4),
    }


def show(rows: Sequence[Row], device: str, core: str) -> None:
    """Print the rows of `judge`."""
    common.table(
        f"{device} ({core}): convolutions, predicted against measured",
        ("how", "kernels", "rows", "MAPE %", "p95 %", "rank"),
        [
            (r["way"], r["kernels"], str(r["count"]), f"{r['mape_percent']:.1f}",
             f"{r['p95_percent']:.1f}", str(r["rank_correlation"]))
            for r in rows
        ],
        text=2,
    )  # fmt: skip

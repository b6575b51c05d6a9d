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
from collections.abc import Sequence

from benchmarks import common, prediction
from benchmarks.prediction import Row
from hwprune.errors import TableError, TargetError
from hwprune.gpu import Gpu
from hwprune.predict.calibration import TVM, Calibrated, find_model
from hwprune.predict.gpu_described import described_gpu_model
from hwprune.predict.gpu_divided import gpu_divided_work
from hwprune.predict.model import LatencyModel, Sample
from hwprune.predict.published import MeasuredConv, read_convolutions
from hwprune.target import Target, load_target

DEVICES = {"jetson-tx2": "tx2"}  # names of targets in published tables
ABI = "cuda"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = prediction.parser(__doc__, "jetson-tx2", "the target's")
    return prediction.exit_status(run, parser.parse_args(arguments))


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
    prediction.show(table, rows[0].device, options.core)
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
    if options.fit:
        prediction.check_enough(rows)
    return rows[: prediction.QUICK] if options.quick else rows


def validate(
    samples: Sequence[Sample],
    rows: Sequence[MeasuredConv],
    target: Target,
    gpu: Gpu,
    *,
    fit: bool,
) -> list[Row]:
    """A row of errors for every way to judge, and for every algorithm."""
    if fit:
        ways = prediction.fit_ways(samples, rows, gpu)
    else:
        ways = prediction.model_way(
            "stored or described", find_model(target, gpu).model, samples, gpu
        )
    return prediction.judge(ways, samples, rows, gpu)


def calibrated(samples: Sequence[Sample], device: str, target: Target, gpu: Gpu) -> Calibrated:
    """The coefficients, without the residual, which is of TVM's schedules only."""
    prior = described_gpu_model()
    model = LatencyModel.fit(samples, gpu, prior, smooth=False)
    source = f"published table of {device}"
    return Calibrated(model, target.name, TVM, source, len(samples), prior.interval)


if __name__ == "__main__":
    sys.exit(main())

"""Predicted against measured convolutions of an Arm core, and networks, from published tables.

    python -m benchmarks.arm_prediction --conv CSV --core cortex-a72 [--fit | --no-fit] [--e2e CSV]
        [--device NAME] [--threads N] [--clock-ghz GHZ] [--save FILE] [--out FILE]

The columns of --conv are those of `hwprune.predict.published`. With --fit (the default) the model
is calibrated on the rows and judged by ten-fold cross-validation: no convolution is predicted by a
model that saw it. A second, harder validation leaves out every convolution of the same plane and
kernel. With --no-fit the target's stored calibration (or that of its class) predicts all rows. With
--e2e (a row per device, a column per network) the sums of predicted kernels are calibrated to whole
networks; each is then predicted with all, and with all others. --save stores the calibration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import common, prediction
from benchmarks.arm_boards import BOARDS, choose_devices, machine_of, target_of
from benchmarks.arm_end_to_end import networks
from benchmarks.prediction import Row
from hwprune.errors import TableError
from hwprune.predict.calibration import TVM, Calibrated, find_model
from hwprune.predict.divided import divided_work
from hwprune.predict.generic import described_model
from hwprune.predict.machine import Machine
from hwprune.predict.model import TAILS, LatencyModel, Sample
from hwprune.predict.network import NetworkModel
from hwprune.predict.published import MeasuredConv, read_convolutions
from hwprune.predict.work import TERMS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = prediction.parser(__doc__, "cortex-a72", "the core's, or all")
    parser.add_argument("--e2e", type=Path, metavar="CSV")
    parser.add_argument("--threads", type=int, help="cores that the measured code used")
    parser.add_argument("--clock-ghz", type=float)
    return prediction.exit_status(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    every = read_convolutions(options.conv)
    devices = choose_devices(every, options.core, options.device)
    if options.save is not None and len(devices) > 1:
        raise TableError(f"has several devices: {', '.join(devices)}", hint="pass --device")
    found = [validate_device([r for r in every if r.device == d], d, options) for d in devices]
    facts = {"core": options.core, "fit": options.fit}
    common.finish(options.out, [row for rows in found for row in rows], ("scipy",), facts)
    return 0


def validate_device(
    rows: Sequence[MeasuredConv], device: str, options: argparse.Namespace
) -> list[Row]:
    """Judge, show and, where asked, store a calibration on the rows of one device."""
    rows = rows[: prediction.QUICK] if options.quick else rows
    machine = machine_of(options, device, rows[0].abi)
    samples = samples_of(rows, machine, warm=not streams_weights(rows, machine))
    table = validate(samples, rows, machine, options)
    model = fitted(samples, machine, options)
    network = None
    if options.e2e is not None:
        network, found = networks(options.e2e, device, rows, model, machine)
        table += found
    show(table, device, options)
    if options.save is not None and options.fit:
        save(options, device, rows, machine, network)
    return [{"device": device} | row for row in table]


def streams_weights(rows: Sequence[MeasuredConv], machine: Machine) -> bool:
    """Whether weights were read from memory: no kernel is faster than that could be.

    Tuners time kernels over arrays that nothing was ever written to: all their pages are one.
    """
    if machine.memory_bytes_per_s is None:
        return True
    large = [r for r in rows if r.shape.weight_bytes > 2 * machine.l2_bytes]
    rates = [r.shape.weight_bytes / r.measured_us * 1e6 for r in large]
    return max(rates, default=0.0) <= machine.memory_bytes_per_s


def samples_of(rows: Sequence[MeasuredConv], machine: Machine, *, warm: bool) -> list[Sample]:
    """Samples whose weights cost nothing where they were `warm`."""
    found = []
    for row in rows:
        work = divided_work(row.shape, row.algorithm, machine)
        work = replace(work, weight_bytes=0.0) if warm else work
        found.append(Sample(work, row.measured_us, row.layer))
    return found


def fitted(
    samples: Sequence[Sample], machine: Machine, options: argparse.Namespace
) -> LatencyModel:
    """The calibrated model, or with --no-fit the stored one."""
    if not options.fit:
        return find_model(target_of(options.core), machine).model
    prediction.check_enough(samples)
    return LatencyModel.fit(samples, machine, described_model())


def validate(
    samples: Sequence[Sample],
    rows: Sequence[MeasuredConv],
    machine: Machine,
    options: argparse.Namespace,
) -> list[Row]:
    """A row of errors for every way to judge, and for every algorithm."""
    if options.fit:
        ways = prediction.fit_ways(samples, rows, machine)
    else:
        model = find_model(target_of(options.core), machine).model
        ways = prediction.model_way("stored calibration", model, samples, machine)
    return prediction.judge(ways, samples, rows, machine)


def save(
    options: argparse.Namespace,
    device: str,
    rows: Sequence[MeasuredConv],
    machine: Machine,
    network: NetworkModel | None,
) -> None:
    """Store the coefficients: without the residual, which is of these schedules only.

    Where weights were not read from memory, their coefficient is that of whole networks.
    """
    warm = not streams_weights(rows, machine)
    samples = samples_of(rows, machine, warm=warm)
    model = LatencyModel.fit(samples, machine, described_model(), smooth=False)
    if warm and network is not None:
        at = TERMS.index("weights")
        changed: Mapping[str, np.ndarray] = {k: c.copy() for k, c in model.coefficients.items()}
        for row in changed.values():
            row[at] = network.weights
        model = replace(model, coefficients=changed)
    source = f"published table of {device}, {machine.threads} threads"
    stored = Calibrated(
        model, options.core, TVM, source, len(rows), transfer(model, options, device)
    )
    stored.save(options.save)
    common.console.print(f"calibration written to {options.save}")


def transfer(model: LatencyModel, options: argparse.Namespace, device: str) -> tuple[float, float]:
    """The interval of a core's coefficients on the other cores of the table."""
    logs = []
    every = read_convolutions(options.conv)
    for other in sorted({row.device for row in every} & set(BOARDS) - {device}):
        if BOARDS[other].core == options.core:
            continue
        rows = [row for row in every if row.device == other]
        asked = argparse.Namespace(core=BOARDS[other].core, threads=None, clock_ghz=None)
        machine = machine_of(asked, other, rows[0].abi)
        samples = samples_of(rows, machine, warm=True)
        predicted = model.median_us([s.work for s in samples], machine)
        logs += list(np.log([s.measured_us for s in samples] / predicted))
    if not logs:
        return described_model().interval
    bound = max(map(abs, (*np.quantile(logs, TAILS), *model.interval)))
    return -float(bound), float(bound)  # the next core may be off in the other direction


def show(rows: Sequence[Row], device: str, options: argparse.Namespace) -> None:
    """Print the errors of kernels, and of networks where there are some."""
    prediction.show([r for r in rows if "way" in r], device, options.core)
    found = [r for r in rows if "network" in r]
    if found:
        common.table(
            "Networks: calibrated on all, and on all others",
            ("network", "measured ms", "kernels", "predicted", "error %", "left out, error %"),
            [tuple(str(value) for value in r.values()) for r in found],
        )


if __name__ == "__main__":
    sys.exit(main())

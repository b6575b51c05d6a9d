"""int8 on the host against float32, and against ONNX Runtime's int8, each in a process of its own.

    python -m benchmarks.int8 [--quick] [--rounds N] [--threads N] [--out FILE]

Networks have their trained shapes and random or trained weights as `examples.models` builds them;
ranges are found on random inputs, which changes no latency. Ours: dense in float32, dense in int8,
pruned to half the multiply-accumulates in int8 (bit for bit the integer reference, or it is no
row). ONNX Runtime: float32, and static quantization to QDQ (uint8 values, int8 weights by channel).
Rounds are interleaved; the load of the machine is noted with every row.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from benchmarks.child import call
from benchmarks.workers import System, Timing, time_interleaved
from examples.models import build, example_input

Row = dict[str, Any]
Runner = Callable[[], Any]
MODELS = ("mobilenet_v2", "resnet18", "efficientnet_lite0")
FLOAT, HALF = "hwprune float32", "hwprune int8, half the MACs"
SYSTEMS = ("onnxruntime float32", "onnxruntime int8", FLOAT, "hwprune int8", HALF)
HERE, INPUT, ONNX, QDQ = "benchmarks.int8", "input.npy", "model.onnx", "int8.onnx"
CALIBRATION = 16  # random inputs
TIMEOUT_S = 900.0


def main() -> None:
    """Measure what is missing, show all."""
    parser = common.parser(__doc__ or "", "one network, few rounds")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rows = common.rows_of(given.out)
    done = {(row["model"], row["threads"]) for row in rows}
    for model in MODELS[:1] if given.quick else MODELS:
        if (model, given.threads) in done:
            continue
        rounds = 3 if given.quick else given.rounds
        with tempfile.TemporaryDirectory(prefix="int8-") as directory:
            rows += measure(model, given.threads, rounds, directory)
        if given.out is not None:
            common.write(given.out, common.envelope(rows, ("onnxruntime",)))
    show(rows)


def measure(model: str, threads: int, rounds: int, directory: str) -> list[Row]:
    """Rows of all systems on one network."""
    arguments = {"model": model, "threads": threads, "directory": directory}
    reasons: dict[str, str | None] = {}
    for system, function in (("onnxruntime", "prepare_peer"), ("hwprune", "prepare_ours")):
        outcome = call(f"{HERE}:{function}", arguments, threads=threads, timeout_s=TIMEOUT_S)
        reasons[system] = outcome.reason
    systems = [
        System(name, f"{HERE}:load", arguments | {"system": name})
        for name in SYSTEMS
        if reasons[name.split()[0]] is None
    ]
    timings = time_interleaved(systems, threads=threads, rounds=rounds)
    load = round(os.getloadavg()[0], 2)
    return [
        _row(model, threads, name, timings.get(name), reasons[name.split()[0]]) | {"load": load}
        for name in SYSTEMS
    ]


def _row(model: str, threads: int, system: str, timing: Timing | None, reason: str | None) -> Row:
    row: Row = {"model": model, "threads": threads, "system": system}
    if timing is None or timing.reason is not None:
        return row | {"median_us": None, "reason": reason or (timing.reason if timing else "")}
    return row | common.quantiles(timing.samples_us) | {"samples": len(timing.samples_us)}


def prepare_ours(model: str, threads: int, directory: str) -> dict[str, Any]:
    """The three artifacts; int8 is checked against the integer reference."""
    import hwprune
    from hwprune.int8_compile import compile_int8

    torch.set_num_threads(threads)
    net, x, folder = build(model), example_input(model), Path(directory)
    np.save(folder / INPUT, x.numpy())
    hwprune.compile(net, (x,), threads=threads).save(folder / FLOAT)
    images = _images(model)
    compile_int8(net, (x,), out=folder / "hwprune int8", threads=threads, calibrate=images)
    half = {"macs": "50%", "calibrate": images}
    compile_int8(net, (x,), out=folder / HALF, threads=threads, recover="none", **half)
    return {}


def prepare_peer(model: str, threads: int, directory: str) -> dict[str, Any]:
    """ONNX in float32, and its static quantization."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    torch.set_num_threads(threads)
    net, x, folder = build(model), example_input(model), Path(directory)
    np.save(folder / INPUT, x.numpy())
    program = torch.onnx.export(net, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(folder / ONNX))
    quant_pre_process(str(folder / ONNX), str(folder / "prepared.onnx"))
    name = program.model.graph.inputs[0].name
    quantize_static(
        str(folder / "prepared.onnx"), str(folder / QDQ), _Reader(str(name), _images(model)),
        quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return {}


class _Reader:
    """Calibration inputs as ONNX Runtime asks for them."""

    def __init__(self, name: str, images: torch.Tensor) -> None:
        self.feeds = iter([{name: image.numpy()} for image in images.split(1)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _images(model: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(CALIBRATION, *example_input(model).shape[1:], generator=generator)


def load(model: str, threads: int, directory: str, system: str) -> Runner:
    """One inference of a system."""
    x = np.load(Path(directory) / INPUT)
    if system.startswith("hwprune"):
        import hwprune

        return partial(hwprune.load(Path(directory) / system), x)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    file = str(Path(directory) / (QDQ if system.endswith("int8") else ONNX))
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: x})


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Milliseconds of every system, and ours in int8 over float32."""
    lines = []
    for model, threads in dict.fromkeys((row["model"], row["threads"]) for row in rows):
        found = {
            row["system"]: row.get("median_us")
            for row in rows
            if (row["model"], row["threads"]) == (model, threads)
        }
        cells = [f"{us / 1e3:.2f}" if us else "-" for us in map(found.get, SYSTEMS)]
        pair = found.get(FLOAT), found.get("hwprune int8")
        share = f"{pair[0] / pair[1]:.2f}" if all(pair) else "-"
        lines.append((model, str(threads), *cells, share))
    heads = ("model", "threads", *(f"{name}, ms" for name in SYSTEMS), "float32 / int8")
    common.table("int8 on the host", heads, lines)


if __name__ == "__main__":
    main()

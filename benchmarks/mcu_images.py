"""Test images on an emulated microcontroller: many to a program, every output compared bit for bit.

In: a `Quantized` network and images. Out: how many the board classified exactly as the integer
reference did, how many rightly, and what one of them costs there.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.fashion_mnist import Split
from hwprune.lower.mcu.model import lower_to_c
from hwprune.mcu_price.network import TEST_VECTORS, emulate
from hwprune.mcu_program import make_vectors, run_on_emulator
from hwprune.quantize.quantizer import Quantized
from hwprune.target import load_target

AT_ONCE = 250  # images in a program


@dataclass(frozen=True)
class OnBoard:
    """What the emulated board made of images: `exact` of them are the reference's, bit for bit.

    `accuracy` in per cent; images of a program with any other output count as wrong. Instructions
    of one image are the emulator's, `latency_ms` is a model's of the core.
    """

    core: str
    images: int
    exact: int
    accuracy: float
    instructions: int
    latency_ms: float
    latency_source: str


def on_board(
    quantized: Quantized, test: Split, output: int = 0, core: str = "cortex-m4"
) -> OnBoard:
    """Run all images of `test`; `output` says which of the network's outputs are the classes."""
    target = load_target(core)
    model = lower_to_c(quantized.graph, target)
    few = make_vectors(model, quantized.integers(test.images[:TEST_VECTORS]))
    once = emulate(model, target, few)
    exact = right = 0
    for begin in range(0, len(test.labels), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        vectors = make_vectors(model, quantized.integers(test.images[part]))
        with tempfile.TemporaryDirectory() as folder:
            run = run_on_emulator(model, target, vectors, Path(folder), timeout_s=3600.0)
        exact += run.matching
        if run.bit_exact:
            classes = vectors.outputs[output].reshape(run.count, -1).argmax(1)
            right += int(np.sum(classes == test.labels[part].numpy()))
    return OnBoard(
        core=core,
        images=len(test.labels),
        exact=exact,
        accuracy=round(100.0 * right / len(test.labels), 2),
        instructions=once.run.instructions,
        latency_ms=round(once.estimate.latency_ms, 4),
        latency_source=f"model: {once.estimate.how}",
    )

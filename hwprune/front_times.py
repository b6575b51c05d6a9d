"""How long the networks of a search take: timed in turn, here or on a board, or predicted.

In: saved programs, the dense one first. Out: `Times`, which say where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwprune.bench import BOARD_ROUNDS, ROUNDS, RUNS_A_ROUND, Network, gpu_here, in_turn, is_timed
from hwprune.build import build
from hwprune.capture import capture
from hwprune.estimate import Span, describe_model, estimate_network, origin
from hwprune.obtain import open_table
from hwprune.predict.fill import MODEL
from hwprune.progress import Advance
from hwprune.remote.address import Boards
from hwprune.remote.measure import open_boards
from hwprune.remote.network import time_networks
from hwprune.request import read_target
from hwprune.target import FLOAT32, Target

DEVICE = "device"


@dataclass(frozen=True)
class Latency:
    """A network's median latency in microseconds, over the dense one's; an interval if predicted.

    The ratio is the median of those of each round where networks were timed in turn.
    """

    median_us: float
    ratio: float
    low_us: float | None = None
    high_us: float | None = None


@dataclass(frozen=True)
class Times:
    """The latencies of some networks.

    `source` is "device" or "model"; `origin` the board, GPU or calibration in a line, empty for
    this machine's processor; `warnings` make a board's or a GPU's latencies doubtful.
    """

    latencies: tuple[Latency, ...]
    source: str = DEVICE
    origin: str = ""
    warnings: tuple[str, ...] = ()


def source_of(target: Target, boards: Boards | None) -> str:
    """Where the latencies of a target's networks come from: "here", "board" or "model"."""
    if boards is not None:
        return "board"
    return "here" if is_timed(target, boards) else MODEL


def times_of(
    files: Sequence[Path],
    name: str,
    threads: int,
    boards: Boards | None,
    advance: Advance,
    dtype: str = FLOAT32,
) -> Times:
    """The latencies of saved programs on a target in a type; the first is the dense one.

    Raises what `build`, `estimate_network` and `time_networks` raise.
    """
    predicted = source_of(read_target(name, threads, dtype=dtype), boards) == MODEL
    target = read_target(
        name, threads, measures=boards is None, compiles=not predicted, dtype=dtype
    )
    if predicted:
        return _predicted(files, target, threads, advance)
    networks = []
    for i, file in enumerate(files):
        program = capture(file)
        networks.append(Network(build(program, target, threads), program))
        advance(i + 1, len(files) + ROUNDS)
    if boards is None:
        times, gpu = _timed_here(networks, advance), gpu_here(target)
        if gpu is None:
            return Times(_in_rounds(times))
        return Times(_in_rounds(times), DEVICE, gpu.brief, gpu.warnings)
    with open_boards(boards, target, threads) as found:
        times = np.median(time_networks(found, networks, BOARD_ROUNDS, RUNS_A_ROUND), axis=2)
        return Times(_in_rounds(times), DEVICE, found.facts.brief, tuple(found.warnings))


def _predicted(files: Sequence[Path], target: Target, threads: int, advance: Advance) -> Times:
    spans: list[Span] = []
    with open_table(target) as table:
        for i, file in enumerate(files):
            spans.append(estimate_network(capture(file), target, threads, table))
            advance(i + 1, len(files))
    dense_us = spans[0].median_us
    latencies = tuple(
        Latency(s.median_us, s.median_us / dense_us, s.low_us, s.high_us) for s in spans
    )
    kernels = [kernel for span in spans for kernel in span.kernels]
    return Times(latencies, MODEL, origin(kernels, describe_model(target, threads)))


def _timed_here(networks: Sequence[Network], advance: Advance) -> np.ndarray:
    """(rounds, networks) median microseconds, all in turn."""
    known = len(networks)

    def done(rounds: int) -> None:
        advance(known + min(rounds, ROUNDS), known + ROUNDS)

    artifacts = [network.build.artifact for network in networks]
    times: np.ndarray = np.median(in_turn(artifacts, ROUNDS, done), axis=2)
    return times


def _in_rounds(times: np.ndarray) -> tuple[Latency, ...]:
    medians = np.median(times, axis=0)
    ratios = np.median(times / times[:, :1], axis=0)
    return tuple(Latency(float(us), float(r)) for us, r in zip(medians, ratios, strict=True))

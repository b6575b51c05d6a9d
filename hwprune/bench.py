"""`Bench`: where whole networks are timed, and kernels: this machine, or boards.

In: compiled networks with their programs. Out: latencies in microseconds, dense and pruned timed
in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from hwprune.build import Build, has_gpu
from hwprune.capture import Program
from hwprune.cuda_runtime import gpu_brief
from hwprune.deploy import Artifact
from hwprune.obtain import is_predicted
from hwprune.prepare import open_table
from hwprune.quiet import SECONDS
from hwprune.remote.address import Boards
from hwprune.remote.measure import BoardTable, open_boards
from hwprune.remote.network import time_networks
from hwprune.table import LatencyTable
from hwprune.target import Target

ROUNDS = 31
RUNS_A_ROUND = 5
FEW_ROUNDS = 8  # of the dense network alone
BOARD_ROUNDS = 11  # a board has nothing else to do, and is ten times slower


@dataclass(frozen=True)
class Pair:
    """Dense and pruned latency of one interleaved run, medians, and their ratio's spread, us."""

    dense_us: float
    pruned_us: float
    ratio: float


@dataclass(frozen=True)
class Network:
    """A compiled network and the program that it was made from."""

    build: Build
    program: Program


@dataclass(frozen=True)
class GpuHere:
    """This machine's GPU, in a line, and what makes its latencies doubtful for a target."""

    brief: str
    warnings: tuple[str, ...] = ()


def gpu_here(target: Target) -> GpuHere | None:
    """The GPU that networks of a target are timed on here; None for other targets, or without."""
    if not has_gpu(target):
        return None
    name, multiprocessors = gpu_brief()
    other = f"it has {multiprocessors} multiprocessors, {target.name} has {target.cores}"
    warnings = () if multiprocessors == target.cores else (other,)
    return GpuHere(f"{name}, {multiprocessors} multiprocessors", warnings)


def is_timed(target: Target, boards: Boards | None) -> bool:
    """Whether networks of a target are timed, on `boards` or here; else they are predicted.

    A GPU's are timed where it is, while its kernels are priced as anywhere else: by the rows that
    `hwprune profile` has measured, by a model where there are none.
    """
    return boards is not None or not is_predicted(target) or has_gpu(target)


@dataclass(frozen=True)
class Bench:
    """A latency table, and where what it lacks is measured: on `boards`, or here where None."""

    table: LatencyTable
    boards: BoardTable | None = None
    gpu: GpuHere | None = None

    @property
    def board(self) -> str:
        """The board or the GPU in a line; empty for this machine's processor."""
        if self.gpu is not None:
            return self.gpu.brief
        return self.boards.facts.brief if self.boards else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the latencies of the board or the GPU doubtful."""
        if self.gpu is not None:
            return self.gpu.warnings
        return tuple(self.boards.warnings) if self.boards else ()

    def latency_us(self, network: Network) -> float:
        """The median latency of one network."""
        if self.boards is not None:
            times = time_networks(self.boards, [network], FEW_ROUNDS, RUNS_A_ROUND)
            return float(statistics.median(times.flat))
        return statistics.median(network.build.artifact.latencies_us(40, warmup=5))

    def pair(self, dense: Network, pruned: Network) -> Pair:
        """Dense and pruned, timed in turn."""
        if self.boards is None:
            return interleaved(dense.build.artifact, pruned.build.artifact)
        times = time_networks(self.boards, [dense, pruned], BOARD_ROUNDS, RUNS_A_ROUND)
        medians = [statistics.median(times[:, i].flat) for i in range(2)]
        ratios = [statistics.median(new) / statistics.median(old) for old, new in times]
        return Pair(float(medians[0]), float(medians[1]), float(statistics.median(ratios)))

    def profile(self, network: Network) -> Mapping[str, float]:
        """Microseconds of every call within the network.

        None from a board or a GPU, which tell the sum.
        """
        if self.boards is not None or self.gpu is not None:
            return {}
        build = network.build
        return build.lowered.profile(build.artifact.example_inputs())


@contextmanager
def open_bench(target: Target, threads: int, boards: Boards | None) -> Iterator[Bench]:
    """The table of this machine or of some boards, open and connected. Raises HwpruneError."""
    if boards is None:
        with open_table(target) as table:
            yield Bench(table, gpu=gpu_here(target))
        return
    with open_boards(boards, target, threads) as found:
        yield Bench(found.table, found)


@dataclass(frozen=True)
class Final:
    """Dense and pruned side by side; `board` is what ran them, empty for a processor here."""

    pair: Pair
    board: str = ""
    warnings: tuple[str, ...] = ()


def final_pair(boards: Boards | None, dense: Network, pruned: Network, target: Target) -> Final:
    """Time two networks of a target in turn, on a board or here."""
    if boards is None:
        pair, gpu = interleaved(dense.build.artifact, pruned.build.artifact), gpu_here(target)
        return Final(pair) if gpu is None else Final(pair, gpu.brief, gpu.warnings)
    threads = pruned.build.artifact.manifest.threads
    with open_boards(boards, target, threads) as found:
        bench = Bench(found.table, found)
        return Final(bench.pair(dense, pruned), bench.board, bench.warnings)


def interleaved(dense: Artifact, pruned: Artifact, rounds: int = ROUNDS) -> Pair:
    """Time two artifacts alternately; medians over all inferences."""
    times = in_turn((dense, pruned), rounds)
    dense_us, pruned_us = np.median(times, axis=(0, 2))
    return Pair(float(dense_us), float(pruned_us), float(ratios(times)[1]))


def in_turn(
    artifacts: Sequence[Artifact],
    rounds: int = ROUNDS,
    done: Callable[[int], None] = lambda rounds: None,
) -> np.ndarray:
    """Microseconds (rounds, artifacts, inferences) of several artifacts, timed in turn.

    At least so many rounds, and more of small networks, until they have taken `SECONDS`; `done` is
    told how many there are after each.
    """
    times: list[list[list[float]]] = []
    end = time.perf_counter() + SECONDS
    while len(times) < rounds or time.perf_counter() < end:
        times.append([a.latencies_us(RUNS_A_ROUND, warmup=1) for a in artifacts])
        done(len(times))
    return np.array(times)


def ratios(times: np.ndarray) -> np.ndarray:
    """Every artifact's latency over the first one's: the median of the rounds' own ratios."""
    medians = np.median(times, axis=2)
    found: np.ndarray = np.median(medians / medians[:, :1], axis=0)
    return found

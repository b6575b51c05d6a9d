"""The front of a search: how good networks are against how long they take, and finishing one.

In: search.json. Out: a `Front`; the artifact of one of its points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hwprune.account_latency import add_estimate
from hwprune.atomic import check_writable
from hwprune.bench import Network
from hwprune.build import build
from hwprune.capture import capture
from hwprune.errors import HwpruneError
from hwprune.estimate import estimate_pair
from hwprune.final_latency import add_measured
from hwprune.front_times import DEVICE, source_of
from hwprune.predict.fill import MODEL
from hwprune.program import Program
from hwprune.progress import Clock, Progress, Silent
from hwprune.remote.address import Boards
from hwprune.repair import recover_by
from hwprune.report import write_report
from hwprune.request import check_boards, read_target
from hwprune.result import export_bytes
from hwprune.target import FLOAT32
from hwprune.ways.trail import read_json
from hwprune.weights import PLAN, WEIGHTS, weights_bytes

PROGRAM, DENSE = "model.pt2", "dense"
FORMAT = 1


@dataclass(frozen=True)
class Point:
    """A network of the search; `quality` is that of `Front.measure`, latency the median in us.

    Predicted latencies have an interval.
    """

    point: int
    budget: str
    quality: float
    latency_us: float
    ratio: float
    params: int
    macs: int
    on_front: bool
    directory: str
    latency_low_us: float | None = None
    latency_high_us: float | None = None


@dataclass(frozen=True)
class Front:
    """The dense network (point 0) and one for each budget; `path` is that of search.json.

    Latencies are of `source` "device" or "model"; `origin` is the board or the calibration in a
    line, empty for this machine; `warnings` make a board's latencies doubtful.
    """

    model: str
    target: str
    threads: int
    measure: str  # "accuracy" (what `evaluate` gave) | "agreement"
    points: tuple[Point, ...]
    missed: tuple[str, ...]  # why a budget has no point
    path: str
    source: str = DEVICE
    origin: str = ""
    warnings: tuple[str, ...] = ()
    dtype: str = FLOAT32  # in which the device computes


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (cost, quality) pairs: whether no other costs less at as much quality, or the reverse."""
    return [
        not any(c <= cost and q >= quality and (c < cost or q > quality) for c, q in points)
        for cost, quality in points
    ]


def read_front(path: str | PathLike[str]) -> Front:
    """The front in a search.json. Raises HwpruneError where it is none."""
    raw = read_json(Path(path))
    try:
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}")
        points = tuple(Point(**p) for p in raw["points"])
        fields = {k: raw[k] for k in ("model", "target", "threads", "measure")}
        fields |= {k: raw[k] for k in ("source", "origin", "dtype") if k in raw}
        fields |= {k: tuple(raw.get(k, ())) for k in ("missed", "warnings")}
        return Front(**fields, points=points, path=str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise HwpruneError(
            f"not the result of a search: {error!r}", where=str(path), hint="run hwprune search"
        ) from error


def compile_point(
    path: str | PathLike[str],
    point: int,
    *,
    out: str | PathLike[str],
    recover: Callable[[Program], Program] | None = None,
    boards: Boards | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Finish a point of a search: recover it further, compile it, write the artifact directory.

    Returns the report, with latencies anew: dense and pruned measured in turn, here or on `boards`,
    or both predicted for a device that is not here. Raises HwpruneError where there is no such
    point.
    """
    check_writable(out)
    clock = Clock(progress or Silent())
    front = read_front(path)
    chosen = next((p for p in front.points if p.point == point and p.point > 0), None)
    if chosen is None:
        last = len(front.points) - 1
        raise HwpruneError(f"no point {point!r}", where="point", hint=f"1 to {last}")
    target = read_target(
        front.target, front.threads, measures=boards is None, compiles=True, dtype=front.dtype
    )
    check_boards(target, boards)
    folder = Path(path).parent / chosen.directory
    with clock.stage("capture"):
        program, dense = capture(folder / PROGRAM), capture(Path(path).parent / DENSE / PROGRAM)
    report = read_json(folder / "report.json")
    if recover is not None:
        with clock.stage("recover"):
            program = recover_by(recover, program)
        report["fidelity"] = None  # that was of the network before
    with clock.stage("compile"):
        built = build(program, target, front.threads)
    if source_of(target, boards) == MODEL:
        add_estimate(report, estimate_pair(dense, program, target, front.threads))
    else:
        with clock.stage("compile dense"):
            whole = Network(build(dense, target, front.threads), dense)
        with clock.stage("measure"):
            add_measured(report, boards, whole, Network(built, program), target)
    report |= {
        "max_rel_error_compiled": built.max_rel_error,
        "ran_on": built.checked_by,
        "dtype": front.dtype,
        "search_point": {"search": str(path), **asdict(chosen)},
    }
    files = {
        PROGRAM: (folder / PROGRAM).read_bytes() if recover is None else export_bytes(program),
        WEIGHTS: weights_bytes(program),
        PLAN: (folder / PLAN).read_bytes(),
        **write_report(report),
    }
    built.artifact.save(out, files)
    return report

"""The front of a search: how good networks are against how long they take, and finishing one.

In: search.json. Out: a `Front`; the artifact of one of its points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hwprune.account import add_latency
from hwprune.atomic import check_writable
from hwprune.build import build
from hwprune.capture import capture
from hwprune.errors import HwpruneError
from hwprune.latency import interleaved
from hwprune.program import Program
from hwprune.progress import Clock, Progress, Silent
from hwprune.report import write_report
from hwprune.request import read_target
from hwprune.result import export_bytes
from hwprune.ways.trail import read_json
from hwprune.weights import PLAN, WEIGHTS, weights_bytes

MODEL, DENSE = "model.pt2", "dense"
FORMAT = 1


@dataclass(frozen=True)
class Point:
    """A network of the search; `quality` is that of `Front.measure`, latency the median in us."""

    point: int
    budget: str
    quality: float
    latency_us: float
    ratio: float
    params: int
    macs: int
    on_front: bool
    directory: str


@dataclass(frozen=True)
class Front:
    """The dense network (point 0) and one for each budget; `path` is that of search.json."""

    model: str
    target: str
    threads: int
    measure: str  # "accuracy" (what `evaluate` gave) | "agreement"
    points: tuple[Point, ...]
    missed: tuple[str, ...]  # why a budget has no point
    path: str


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
        return Front(**fields, points=points, missed=tuple(raw["missed"]), path=str(path))
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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Finish a point of a search: recover it further, compile it, write the artifact directory.

    Returns the report, with latencies measured anew, dense and pruned in turn. Raises HwpruneError
    where there is no such point.
    """
    check_writable(out)
    clock = Clock(progress or Silent())
    front = read_front(path)
    chosen = next((p for p in front.points if p.point == point and p.point > 0), None)
    if chosen is None:
        last = len(front.points) - 1
        raise HwpruneError(f"no point {point!r}", where="point", hint=f"1 to {last}")
    target = read_target(front.target, front.threads, compiles=True)
    folder = Path(path).parent / chosen.directory
    with clock.stage("capture"):
        program, dense = capture(folder / MODEL), capture(Path(path).parent / DENSE / MODEL)
    if recover is not None:
        with clock.stage("recover"):
            program = recover(program)
    with clock.stage("compile"):
        built = [build(p, target, front.threads) for p in (dense, program)]
    with clock.stage("measure"):
        pair = interleaved(built[0].artifact, built[1].artifact)
    report = read_json(folder / "report.json")
    add_latency(report, pair)
    report |= {
        "max_rel_error_compiled": built[1].max_rel_error,
        "search_point": {"search": str(path), **asdict(chosen)},
    }
    files = {
        MODEL: (folder / MODEL).read_bytes() if recover is None else export_bytes(program),
        WEIGHTS: weights_bytes(program),
        PLAN: (folder / PLAN).read_bytes(),
        **write_report(report),
    }
    built[1].artifact.save(out, files)
    return report

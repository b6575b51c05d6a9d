"""`hwprune compile --from search.json --point K`: what it may be given, and doing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwprune.errors import HwpruneError
from hwprune.shown import show_artifact, shown_progress

if TYPE_CHECKING:
    from hwprune.remote.address import Boards


def finish_point(
    model: str | None,
    from_search: Path | None,
    point: int | None,
    recover: str | None,
    given_too: list[str],
    boards: Boards | None,
    out: Path,
    as_json: bool,
) -> None:
    """`hwprune compile --from search.json --point K`."""
    from hwprune.front import compile_point
    from hwprune.model_ref import load_function

    if from_search is None or point is None or model is not None or given_too:
        also = ", ".join((["MODEL"] if model is not None else []) + given_too)
        raise HwpruneError(
            f"a point of a search and {also} exclude each other"
            if from_search is not None and point is not None
            else "needs a MODEL, or both --from and --point",
            where="compile",
        )
    how = load_function(recover, "--recover") if recover is not None else None
    with shown_progress(as_json) as progress:
        report = compile_point(
            from_search, point, out=out, recover=how, boards=boards, progress=progress
        )
    show_artifact(report, out, as_json)

"""Writing all or nothing: to a temporary name beside the goal, then renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwprune.errors import ArtifactError

_HINT = "choose a directory that can be written and has room"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file. Raises ArtifactError if it cannot be written; nothing is left then."""
    goal = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{goal.name}-", dir=goal.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, 0o644)
            os.replace(name, goal)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArtifactError(f"cannot be written: {error}", where=str(goal), hint=_HINT) from error


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Raise ArtifactError if a directory cannot be made there: before long work starts."""
    path = Path(directory).absolute()
    if path.exists() and not path.is_dir():
        raise ArtifactError("is a file, not a directory", where=str(directory), hint=_HINT)
    parent = path if path.is_dir() else next(p for p in path.parents if p.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=parent) as probe:
            probe.write(b"\0" * 65536)
            probe.flush()
    except OSError as error:
        raise ArtifactError(
            f"cannot be written: {error}", where=str(directory), hint=_HINT
        ) from error


@contextmanager
def replace_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `directory` when the block succeeds.

    Files of `directory` that the block did not write again are kept. Raises ArtifactError if it
    cannot be written; `directory` is then as it was.
    """
    goal = Path(directory).absolute()
    check_writable(goal)
    goal.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{goal.name}-", dir=goal.parent))
    try:
        yield staging
        os.chmod(staging, 0o755)
        if not goal.exists():
            os.rename(staging, goal)
            return
        for file in sorted(staging.iterdir(), key=lambda f: f.name == "manifest.json"):
            os.replace(file, goal / file.name)
    except OSError as error:
        raise ArtifactError(
            f"cannot be written: {error}", where=str(directory), hint=_HINT
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)

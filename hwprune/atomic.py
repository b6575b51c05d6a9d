"""Writing all or nothing: to a temporary name on the same disk, then renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hwprune import interrupt
from hwprune.errors import ArtifactError

_PROBE = b"\0" * 65536
_HINT = "choose a directory that can be written and has room"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file. Raises ArtifactError if it cannot be written; nothing is left then."""
    _replace(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file. Raises ArtifactError if it cannot be written; nothing is left then."""
    _replace(path, lambda file: file.write_bytes(data))


def _replace(path: str | os.PathLike[str], write: Callable[[Path], int]) -> None:
    goal = Path(path)
    temporary = goal.parent / _temporary_name(goal)
    try:
        try:
            write(temporary)
            os.replace(temporary, goal)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Raise ArtifactError if a directory cannot be made there: before long work starts."""
    nearest = _nearest(Path(directory).absolute())
    if not nearest.is_dir():
        raise ArtifactError(
            f"cannot be made: {nearest} is a file, not a directory",
            where=str(directory),
            hint=_HINT,
        )
    try:
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(_PROBE)
            probe.flush()
    except OSError as error:
        raise _unwritable(directory, error) from error


def check_room(directory: str | os.PathLike[str], size: int) -> None:
    """Raise ArtifactError unless a file of `size` bytes fits there (LLVM would just abort)."""
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            os.posix_fallocate(probe.fileno(), 0, size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(
            f"no room for {size / 1e6:.0f} MB of temporary files: {reason}",
            where=str(directory),
            hint="set TMPDIR to a directory that can be written and has room",
        ) from error


@contextmanager
def replace_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty directory whose files take their place in `directory` when the block succeeds.

    Files of `directory` that the block did not write again are kept. Raises ArtifactError if it
    cannot be written; `directory` is then as it was.
    """
    goal = Path(directory).absolute()
    check_writable(goal)
    staging = _nearest(goal) / _temporary_name(goal)
    try:
        staging.mkdir()
        yield staging
        interrupt.check()
        with interrupt.held_back():
            _publish(staging, goal)
    except OSError as error:
        raise _unwritable(directory, error) from error
    finally:
        with interrupt.held_back():
            shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, goal: Path) -> None:
    """Move the directory, or its files where the goal is there already; the manifest last."""
    if not goal.exists():
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staging, goal)
        return
    files = sorted(staging.iterdir(), key=lambda file: file.name == "manifest.json")
    for file in files:
        if (goal / file.name).is_dir():
            raise IsADirectoryError(f"{file.name} is a directory there")
    for file in files:
        os.replace(file, goal / file.name)


def _nearest(path: Path) -> Path:
    """The path itself or the first of its parents that exists, whatever it is."""
    return next(p for p in (path, *path.parents) if os.path.lexists(p))


def _temporary_name(goal: Path) -> str:
    return f".{goal.name}-{uuid.uuid4().hex[:8]}"


def _unwritable(where: str | os.PathLike[str], error: OSError) -> ArtifactError:
    reason = error.strerror or str(error)
    return ArtifactError(f"cannot be written: {reason}", where=str(where), hint=_HINT)

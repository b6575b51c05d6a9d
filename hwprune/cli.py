"""The command line's door: runs a command and turns every way it can end into an exit status.

0 is success, 2 a mistake that a message explains, 130 an interruption, 1 a defect of hwprune.
Nothing heavy is imported before Ctrl-C is handled.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hwprune import interrupt
from hwprune.errors import HwpruneError

MISTAKE, DEFECT, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        with interrupt.remembered():
            status = _run(arguments)
    except KeyboardInterrupt:  # between the lines above
        status = INTERRUPTED
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one was enough: the rest is cleaning up
        exec("")  # where Ctrl-C ended another exec, CPython would remember it and die of SIGINT
        _say("interrupted; nothing is half written, what was measured is kept")
    sys.exit(status)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        import warnings

        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own
        from hwprune import (  # noqa: F401 - theirs
            board_commands,
            look_commands,
            table_commands,
            ways_commands,
        )
        from hwprune.commands import app

        result = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        interrupt.check()
        return result if isinstance(result, int) else 0
    except BaseException as error:
        return _status(error)


def _status(error: BaseException) -> int:
    """Say what happened; the exit status."""
    aborted = isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort"
    if aborted or interrupt.seen():
        return INTERRUPTED
    if isinstance(error, HwpruneError):
        return _mistake(str(error))
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return _mistake(f"{place}{error.strerror or error} (is there room, and may it be written?)")
    if isinstance(error, MemoryError):
        return _mistake("out of memory (give smaller inputs, or use a machine with more)")
    if isinstance(error, SystemExit):  # of the user's own code
        return _mistake(str(error.code)) if isinstance(error.code, str) else error.code or 0
    show = getattr(error, "show", None)  # an error in how the command was written
    if show is not None:
        show()
        return int(getattr(error, "exit_code", MISTAKE))
    return _defect(error)


def _mistake(text: str) -> int:
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    _say(f"\x1b[1;31merror:\x1b[0m {text}" if colour else f"error: {text}")
    return MISTAKE


def _defect(error: BaseException) -> int:
    if os.environ.get("HWPRUNE_TRACEBACK"):
        raise error
    trace = error.__traceback__
    place = ""
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    _say(f"error: {place}: {type(error).__name__}: {lines[0]}")
    _say("This is a defect of hwprune: please report it with what HWPRUNE_TRACEBACK=1 shows.")
    return DEFECT


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()

"""The programs that make and run code for another machine: looked for, or named by their package.

In: a `Target`. Out: names of programs. Their absence is a ToolchainError that says which Debian
package has them; they are run only to ask them what they know.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hwprune.errors import TargetError, ToolchainError
from hwprune.host_cpu import read_cpu
from hwprune.target import Target, architecture, check_code, host_architecture

COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
EMULATORS = ("qemu-{}", "qemu-{}-static")  # of Debian's qemu-user and qemu-user-static


@dataclass(frozen=True)
class Emulator:
    """A command that runs a program of another architecture, given before the program's own."""

    name: str
    command: tuple[str, ...]


def is_foreign(target: Target) -> bool:
    """Whether a target's code is for another architecture than this machine's."""
    return architecture(target, read_cpu()) != host_architecture()


def linker(target: Target) -> str | None:
    """The compiler that links a target's library; None leaves the choice to TVM.

    Raises ToolchainError naming the Debian package where there is none.
    """
    if not is_foreign(target):
        _check_host_compiler()
        return None
    return cross_compiler(target)


def cross_compiler(target: Target) -> str:
    """The C++ compiler that a foreign target names. Raises ToolchainError where it is missing."""
    name = target.toolchain
    if not name:
        raise ToolchainError(
            f"target {target.name!r} names no compiler, and this machine's makes other code",
            hint="say toolchain.compiler in its target.toml",
        )
    if shutil.which(name) is None:
        raise ToolchainError(
            f"no cross-compiler for target {target.name!r}: {name} is not there",
            where="PATH",
            hint=f"install the Debian package {_package(name)}",
        )
    return name


def emulator(target: Target) -> Emulator | None:
    """What runs a foreign target's programs here; None where it is not installed."""
    names = [form.format(architecture(target, read_cpu())) for form in EMULATORS]
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        return None
    options = ["-L", str(_libraries(cross_compiler(target)))]
    mcpu = str(target.tvm_target.get("mcpu", ""))
    if mcpu in _said([found, "-cpu", "help"]).split():
        options += ["-cpu", mcpu]  # an instruction that the core lacks ends the program
    return Emulator(found, (found, *options))


def runs_here(target: Target) -> bool:
    """Whether this machine has the instructions of a target's code."""
    try:
        check_code(target)
    except TargetError:
        return False
    return True


def _check_host_compiler() -> None:
    given = os.environ.get("CXX") or os.environ.get("CC")
    names = (given,) if given else COMPILERS
    if not any(shutil.which(name) for name in names):
        raise ToolchainError(
            f"no C++ compiler found (looked for {', '.join(names)})",
            where="CXX" if given else "PATH",
            hint="install the Debian package g++",
        )


def _package(compiler: str) -> str:
    """Debian's package of a compiler `<triple>-g++`: g++-<triple>, with dashes only."""
    triple, _, kind = compiler.rpartition("-")
    return f"{kind}-{triple}".replace("_", "-") if triple else compiler


def _libraries(compiler: str) -> Path:
    """The directory whose `lib` has the target's C library, as its compiler knows it."""
    library = Path(_said([compiler, "-print-file-name=libc.so.6"]).strip())
    if not library.is_absolute():
        raise ToolchainError(
            f"{compiler} does not say where its C library is", hint="install its libc6-dev package"
        )
    return library.resolve().parent.parent


def _said(command: list[str]) -> str:
    """What a command prints; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout

"""The folder that a microcontroller's project takes: sources, build files, tests, a README.

In: a `CModel`, its target and test vectors. Out: the text of every file by name.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from hwprune.emulator.boards import BOARDS
from hwprune.emulator.link import linker_script
from hwprune.emulator.program import CFLAGS, HARNESS, QUIET, SERIAL, SHIFT, c_files
from hwprune.emulator.toolchain import mcu_of
from hwprune.lower.mcu.model import FLOATS, CModel, pointers
from hwprune.mcu_program import sources
from hwprune.mcu_vectors import Vectors, model_id_text
from hwprune.target import Target

_PORTS = ("uart.c", "uart_emulated.c")
_TEMPLATES = ("Makefile", "CMakeLists.txt", "README.md")


def artifact_files(model: CModel, target: Target, vectors: Vectors, facts: Any) -> dict[str, str]:
    """Every file of the artifact but its report. `facts`: name -> text, for the README."""
    common = c_files()
    texts = sources(model, vectors)
    board = {*HARNESS, *SERIAL, *_PORTS, "harness.h", "serial.h"}
    texts |= {name: (common / name).read_text("utf-8") for name in sorted(board)}
    texts["model_id.h"] = model_id_text(model)
    texts["device.ld"] = _device_script(target)
    emulator = _emulator_script(target)
    if emulator:
        texts["emulator.ld"] = emulator
    values = _values(model, target, vectors.steps) | facts
    for name in _TEMPLATES:
        texts[name] = _fill(_template(name), values)
    return texts


def _device_script(target: Target) -> str:
    mcu = mcu_of(target)
    return linker_script(mcu.flash_origin, mcu.flash_bytes, mcu.sram_origin, mcu.sram_bytes)


def _emulator_script(target: Target) -> str:
    mcu = mcu_of(target)
    board = BOARDS.get(mcu.machine)
    if board is None:
        return ""
    return linker_script(
        board.code.origin,
        min(mcu.flash_bytes, board.code.size),
        board.data.origin,
        min(mcu.sram_bytes, board.data.size),
        board.extra,
    )


def _values(model: CModel, target: Target, steps: int) -> dict[str, str]:
    mcu = mcu_of(target)
    graph = model.graph
    arguments = [*pointers(graph.inputs, "input").values()]
    arguments += pointers(graph.outputs, "output").values()
    qemu = ["qemu-system-arm", "-M", mcu.machine, *QUIET, "-icount", f"shift={SHIFT}"]
    return {
        "NAME": graph.name,
        **_words(FLOATS in model.headers, steps),
        "HEADERS": " ".join(model.headers),
        "FILES": ", ".join(f"`{name}`" for name in ("model.c", "model.h", *model.headers)),
        "TARGET": target.name,
        "DESCRIPTION": target.description,
        "PREFIX": mcu.prefix,
        "FLAGS": " ".join(mcu.flags),
        "CFLAGS": " ".join(CFLAGS),
        "QEMU": " ".join(qemu) if mcu.machine in BOARDS else "",
        "MACHINE": mcu.machine or "none",
        "UART": f"0x{BOARDS[mcu.machine].uart:08x}u" if mcu.machine in BOARDS else "0",
        "ARENA": str(model.arena_bytes),
        "PEAK": model.peak,
        "CONSTANTS": str(model.constant_bytes),
        "CALL": ", ".join(arguments),
        "OPERATORS": ", ".join(f"{n} {k}" for k, n in graph.summary()["operators"].items()),
    }


def _words(floats: bool, steps: int) -> dict[str, str]:
    """What depends on the numbers that the network computes with.

    `steps`: how far int8 outputs may lie from the reference's (operators in float32).
    """
    if floats:
        return {
            "DTYPE": "float32",
            "VALUES": "Inputs and outputs are float32, as PyTorch has them",
            "REFERENCE": "PyTorch's outputs, within 1e-5 of the largest",
        }
    return {
        "DTYPE": "int8",
        "VALUES": "Inputs and outputs are int8: `real = SCALE * (integer - ZERO_POINT)` with the "
        "constants of `model.h`",
        "REFERENCE": f"the integer reference, within {steps} steps (operators in float32)"
        if steps
        else "the integer reference, bit for bit",
    }


def _template(name: str) -> str:
    folder = Path(str(files("hwprune.mcu_artifact") / "templates"))
    return (folder / name).read_text("utf-8")


def _fill(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text

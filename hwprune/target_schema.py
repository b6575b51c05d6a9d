"""The schema of `target.toml`: every key with its type, range and whether it must be there.

In: the path of a file. Out: nested dicts that `target.py` can trust. `docs/targets.md` is the
prose for the same table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hwprune.errors import TargetError

SCHEMA = 1


@dataclass(frozen=True)
class Key:
    """One key: its type, the smallest allowed number, the allowed values, and if it is needed.

    `needed` keys may be absent where the target is detected.
    """

    kind: str  # "text" | "int" | "number" | "flag" | "texts" | "ints" | "table"
    needed: bool = False
    least: float | None = None
    one_of: tuple[Any, ...] = ()


TOP: dict[str, Key] = {
    "schema": Key("int", needed=True, one_of=(SCHEMA,)),
    "name": Key("text", needed=True),
    "description": Key("text", needed=True),
    "kind": Key("text", needed=True, one_of=("cpu", "cuda", "mcu")),
    "detect": Key("flag"),
    "board": Key("texts"),
    "sources": Key("texts"),
    "isa": Key("table", needed=True),
    "core": Key("table"),
    "cores": Key("table"),
    "memory": Key("table"),
    "energy": Key("table"),
    "alignment": Key("table"),
    "tvm": Key("table", needed=True),
    "toolchain": Key("table"),
    "runner": Key("table"),
    "mcu": Key("table"),
    "gpu": Key("table"),
}
TABLES: dict[str, dict[str, Key]] = {
    "isa": {
        "features": Key("texts", needed=True),
        "vector_bits": Key("int", needed=True, one_of=(32, 64, 128, 256, 512, 1024, 2048)),
        "vector_registers": Key("int", needed=True, least=1),
    },
    "core": {
        "fma_per_cycle": Key("number", needed=True, least=0.01),
        "fma_latency_cycles": Key("number", needed=True, least=1),
        "loads_per_cycle": Key("number", needed=True, least=0.01),
        "issue_width": Key("int", needed=True, least=1),
        "in_order": Key("flag", needed=True),
        "lane_operand": Key("flag"),
        "mca_cpu": Key("text"),
    },
    "cores": {"count": Key("int", least=1), "clock_hz": Key("number", least=1)},
    "memory": {
        "l1d_bytes": Key("int", least=1),
        "l2_bytes": Key("int", least=1),
        "l3_bytes": Key("int", least=1),
        "bytes_per_s": Key("number", least=1),
        "sram_bytes": Key("int", least=1),
        "flash_bytes": Key("int", least=1),
    },
    "energy": {
        "pj_per_mac": Key("number", needed=True, least=0),
        "pj_per_byte": Key("number", needed=True, least=0),
        "source": Key("text", needed=True),
    },
    "alignment": {"channels": Key("int", least=1)},
    "tvm": {
        "kind": Key("text", needed=True, one_of=("llvm", "c", "cuda")),
        "mcpu": Key("text"),
        "mtriple": Key("text"),
        "mattr": Key("texts"),
        "arch": Key("text"),
    },
    "toolchain": {"compiler": Key("text")},
    "runner": {"kind": Key("text", one_of=("local", "rpc", "emulator"))},
    "mcu": {
        "core": Key("text", needed=True),
        "prefix": Key("text", needed=True),
        "flags": Key("texts", needed=True),
        "machine": Key("text"),
        "flash_origin": Key("int", least=0),
        "sram_origin": Key("int", least=0),
    },
    "gpu": {
        "memory_bytes": Key("int", needed=True, least=1),
        "l2_bytes_per_s": Key("number", needed=True, least=1),
        "registers_per_sm": Key("int", needed=True, least=1),
        "shared_bytes_per_sm": Key("int", needed=True, least=1),
        "shared_bytes_per_block": Key("int", needed=True, least=1),
        "threads_per_sm": Key("int", needed=True, least=32),
        "blocks_per_sm": Key("int", needed=True, least=1),
        "launch_us": Key("number", needed=True, least=0),
        "float32_flop_per_s": Key("number", needed=True, least=1),
        "float16_flop_per_s": Key("number", least=1),
        "tensor_tf32_flop_per_s": Key("number", least=1),
        "tensor_float16_flop_per_s": Key("number", least=1),
        "tensor_bfloat16_flop_per_s": Key("number", least=1),
        "tensor_int8_flop_per_s": Key("number", least=1),
        "vector_tile": Key("ints", needed=True),
        "tensor_tile": Key("ints"),
        "pipeline_stages": Key("int", least=1),
    },
}
# Tables that detection fills in: their needed keys may be left out of a detected target.
DETECTED = ("isa", "tvm", "description")


def read_toml(path: Path) -> dict[str, Any]:
    """Parse and check a file. Raises TargetError naming the file and the key."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"cannot be read: {error}", where=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"not valid TOML: {error}", where=str(path)) from error
    detect = raw.get("detect") is True
    _check_table(path, "", raw, TOP, DETECTED if detect else ())
    for name, keys in TABLES.items():
        if name in raw:
            optional = tuple(keys) if detect and name in DETECTED else ()
            _check_table(path, f"{name}.", raw[name], keys, optional)
    return raw


def _check_table(
    path: Path,
    prefix: str,
    table: Mapping[str, Any],
    keys: Mapping[str, Key],
    optional: tuple[str, ...],
) -> None:
    for name, value in table.items():
        if name not in keys:
            near = get_close_matches(name, keys, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(keys)}"
            raise TargetError("unknown key", where=f"{path}: {prefix}{name}", hint=hint)
        _check_value(f"{path}: {prefix}{name}", value, keys[name])
    for name, key in keys.items():
        if key.needed and name not in table and name not in optional:
            raise TargetError("is missing", where=f"{path}: {prefix}{name}")


_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "int": (int,),
    "number": (int, float),
    "flag": (bool,),
    "texts": (list,),
    "ints": (list,),
    "table": (dict,),
}
_ITEMS = {"texts": str, "ints": int}  # of lists
_NAMES = {
    "text": "a text",
    "int": "a whole number",
    "number": "a number",
    "flag": "true or false",
    "texts": "a list of texts",
    "ints": "a list of whole numbers",
    "table": "a table",
}


def _check_value(where: str, value: Any, key: Key) -> None:
    wrong = not isinstance(value, _TYPES[key.kind]) or (
        isinstance(value, bool) and key.kind != "flag"
    )
    if wrong or (key.kind in _ITEMS and not all(type(v) is _ITEMS[key.kind] for v in value)):
        raise TargetError(f"must be {_NAMES[key.kind]}, not {value!r}", where=where)
    if key.least is not None and not key.least <= value < float("inf"):
        raise TargetError(f"must be at least {key.least:g}, not {value!r}", where=where)
    if key.one_of and value not in key.one_of:
        allowed = ", ".join(map(str, key.one_of))
        raise TargetError(f"must be one of {allowed}, not {value!r}", where=where)

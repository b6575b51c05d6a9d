"""`Gpu`: what a target of kind "cuda" says of its multiprocessors, and whether that can be.

In: the checked tables of a `target.toml`. Out: a `Gpu`. The numbers that belong together are
checked here: an architecture has its types, a block fits a multiprocessor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwprune.errors import TargetError

NEEDS = {
    "cores": ("count", "clock_hz"),
    "memory": ("l2_bytes", "bytes_per_s"),
    "tvm": ("arch",),
}
TENSOR_SINCE = {"float16": 70, "int8": 72, "bfloat16": 80, "tf32": 80}  # sm_NN, of tensor cores
VECTOR_TYPES = ("float32", "float16")  # of CUDA cores
WARP = 32  # threads
ASYNC_COPY_SINCE = 80  # sm_NN: copies to shared memory that pass by the registers


@dataclass(frozen=True)
class Gpu:
    """A graphics processor. Rates count a multiply-add as two operations, as data sheets do.

    `tensor_flop_per_s` is of dense products on tensor cores with float32 sums (int32 for int8), by
    the type of the factors ("tf32", "float16", "bfloat16", "int8"); `vector_flop_per_s` of CUDA
    cores ("float32", "float16"). Tiles are (rows, columns, depth) of a block's product.
    `launch_us` is what a kernel adds to a replayed CUDA graph.
    """

    architecture: str  # "sm_90"
    sms: int
    clock_hz: float
    memory_bytes: int
    memory_bytes_per_s: float
    l2_bytes: int
    l2_bytes_per_s: float
    registers_per_sm: int
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    threads_per_sm: int
    blocks_per_sm: int
    launch_us: float
    vector_tile: tuple[int, int, int]
    tensor_tile: tuple[int, int, int] | None = None  # None where there are no tensor cores
    pipeline_stages: int = 2  # tiles of operands in shared memory at a time
    vector_flop_per_s: Mapping[str, float] = field(default_factory=dict, hash=False)
    tensor_flop_per_s: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def capability(self) -> int:
        """The compute capability as one number: 90 for "sm_90"."""
        return capability(self.architecture)

    @property
    def async_copy(self) -> bool:
        """Whether shared memory is filled without registers in between (cp.async)."""
        return self.capability >= ASYNC_COPY_SINCE


def capability(architecture: str) -> int:
    """90 for "sm_90" and "sm_90a". Raises ValueError for anything that is no architecture."""
    found = re.fullmatch(r"sm_(\d{2,3})[a-z]?", architecture)
    if found is None:
        raise ValueError(f"must be like sm_80, not {architecture!r}")
    return int(found[1])


def read_gpu(path: Path, raw: Mapping[str, Any]) -> Gpu:
    """The GPU of a target of kind "cuda". Raises TargetError naming the file and the key."""
    if "gpu" not in raw:
        raise TargetError("is missing", where=f"{path}: [gpu]", hint="see docs/targets.md")
    for table, keys in NEEDS.items():
        for key in keys:
            if key not in raw.get(table, {}):
                raise TargetError("is missing", where=f"{path}: {table}.{key}")
    if raw["tvm"]["kind"] != "cuda":
        raise TargetError("must be cuda for kind cuda", where=f"{path}: tvm.kind")
    try:
        level = capability(raw["tvm"]["arch"])
    except ValueError as error:
        raise TargetError(str(error), where=f"{path}: tvm.arch") from error
    gpu = raw["gpu"]
    _check(path, gpu, level)
    cores, memory = raw["cores"], raw["memory"]
    tile = gpu.get("tensor_tile")
    return Gpu(
        architecture=raw["tvm"]["arch"],
        sms=cores["count"],
        clock_hz=float(cores["clock_hz"]),
        memory_bytes=gpu["memory_bytes"],
        memory_bytes_per_s=float(memory["bytes_per_s"]),
        l2_bytes=memory["l2_bytes"],
        l2_bytes_per_s=float(gpu["l2_bytes_per_s"]),
        registers_per_sm=gpu["registers_per_sm"],
        shared_bytes_per_sm=gpu["shared_bytes_per_sm"],
        shared_bytes_per_block=gpu["shared_bytes_per_block"],
        threads_per_sm=gpu["threads_per_sm"],
        blocks_per_sm=gpu["blocks_per_sm"],
        launch_us=float(gpu["launch_us"]),
        vector_tile=_tile(gpu["vector_tile"]),
        tensor_tile=_tile(tile) if tile else None,
        pipeline_stages=gpu.get("pipeline_stages", 2),
        vector_flop_per_s=_rates(gpu, "", VECTOR_TYPES),
        tensor_flop_per_s=_rates(gpu, "tensor_", TENSOR_SINCE),
    )


def _check(path: Path, gpu: Mapping[str, Any], level: int) -> None:
    """What the table says must be possible together, on this architecture."""
    for key in ("tensor_tile", "vector_tile"):
        tile = gpu.get(key, (1, 1, 1))
        if len(tile) != 3 or min(tile) < 1:
            raise TargetError(
                f"must be three sizes of at least 1 (rows, columns, depth), not {tile!r}",
                where=f"{path}: gpu.{key}",
            )
    if gpu["shared_bytes_per_block"] > gpu["shared_bytes_per_sm"]:
        raise TargetError(
            "a block cannot have more than its multiprocessor (gpu.shared_bytes_per_sm)",
            where=f"{path}: gpu.shared_bytes_per_block",
        )
    for name, since in TENSOR_SINCE.items():
        if f"tensor_{name}_flop_per_s" in gpu and level < since:
            raise TargetError(
                f"sm_{level} has no tensor cores for {name} (since sm_{since})",
                where=f"{path}: gpu.tensor_{name}_flop_per_s",
            )
    if bool(_rates(gpu, "tensor_", TENSOR_SINCE)) != ("tensor_tile" in gpu):
        raise TargetError(
            "is there where there are rates of tensor cores, and only there",
            where=f"{path}: gpu.tensor_tile",
        )


def _tile(sizes: list[int]) -> tuple[int, int, int]:
    rows, columns, depth = sizes
    return rows, columns, depth


def _rates(gpu: Mapping[str, Any], prefix: str, names: Any) -> dict[str, float]:
    keys = {name: f"{prefix}{name}_flop_per_s" for name in names}
    return {name: float(gpu[key]) for name, key in keys.items() if key in gpu}

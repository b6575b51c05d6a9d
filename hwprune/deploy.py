"""The artifact: a directory with a compiled network and its manifest, loaded without torch.

In: a compiled library (`model.so`) and what describes it. Out: an `Artifact` that runs on NumPy
arrays. `manifest.json` names every file with its SHA-256, the shapes and dtypes, the target
and the toolchain; loading checks all of it before any code runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.atomic import replace_directory
from hwprune.cuda_runtime import answer_with, check_gpu, hint_of
from hwprune.errors import ArtifactError
from hwprune.host_cpu import read_cpu
from hwprune.tvm_runtime import load_tvm, set_threads

MANIFEST = "manifest.json"
LIBRARY = "model.so"
CUBIN = "model.cubin"  # machine code of a GPU's kernels
CUBIN_SOURCE = "model.cubin.source"  # the digest of the CUDA code that it was made of
FORMAT = 1
EVENTS_MS = 2  # between two CUDA events, at least: far more than what they take themselves


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and dtype of one input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds."""

    model: str
    target: str
    isa: tuple[str, ...]
    threads: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    toolchain: Mapping[str, str]
    gpu: str = ""  # the architecture of the GPU that it needs, e.g. "sm_90"
    files: Mapping[str, str] = field(default_factory=dict)  # name -> SHA-256
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> Manifest:
        """Parse `manifest.json`. Raises ArtifactError that names the file."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ArtifactError(
                    f"manifest format {raw['format']} is not the {FORMAT} of this hwprune",
                    where=where,
                    hint="compile the model again",
                )
            return Manifest(
                model=str(raw["model"]),
                target=str(raw["target"]),
                isa=tuple(str(feature) for feature in raw["isa"]),
                threads=_thread_count(raw["threads"]),
                inputs=tuple(_tensor_info(t) for t in raw["inputs"]),
                outputs=tuple(_tensor_info(t) for t in raw["outputs"]),
                toolchain=dict(raw["toolchain"]),
                gpu=str(raw.get("gpu", "")),
                files={str(k): str(v) for k, v in raw["files"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(
                f"not a valid manifest: {reason}", where=where, hint="compile the model again"
            ) from error


class Artifact:
    """A compiled network that runs on NumPy arrays.

    Call it with one array per input (shapes and dtypes as in `manifest.inputs`); it returns one
    array, or a tuple where the network has several outputs. Raises ArtifactError before any of its
    code is loaded if that needs instructions that this CPU lacks; one that is not to be loaded, for
    it is another machine's, can be saved and raises ArtifactError where it is run.
    """

    def __init__(self, directory: Path, manifest: Manifest, *, loaded: bool = True) -> None:
        self.directory = directory
        self.manifest = manifest
        self.loaded = loaded
        self._normal = False  # whether a GPU holds standard normal inputs
        if loaded:
            _check_cpu(directory, manifest)
            self._load()

    def _load(self) -> None:
        directory, manifest, tvm = self.directory, self.manifest, load_tvm()
        if manifest.gpu:
            self._load_gpu()
        try:
            library = tvm.runtime.load_module(str(directory / LIBRARY))
            self._device = tvm.cuda(0) if manifest.gpu else tvm.cpu()
            devices = [self._device, tvm.cpu()] if manifest.gpu else self._device
            self._machine = tvm.runtime.vm.VirtualMachine(library, devices)
            self._main = self._machine["main"]
            self._inputs = [
                tvm.runtime.empty(info.shape, info.dtype, self._device) for info in manifest.inputs
            ]
        except Exception as error:
            raise ArtifactError(
                f"cannot be loaded: {error}",
                where=str(directory / LIBRARY),
                hint=hint_of(error, "was it compiled for another machine?"),
            ) from error

    def _load_gpu(self) -> None:
        """Check the GPU, and have TVM take our machine code for the library's CUDA source."""
        check_gpu(self.manifest.gpu, str(self.directory))
        key = (self.directory / CUBIN_SOURCE).read_text().strip()
        answer_with(key, (self.directory / CUBIN).read_bytes())

    def __call__(self, *inputs: np.ndarray) -> Any:
        """Run the network. Raises ArtifactError on a wrong number, shape or dtype of inputs."""
        self._check_loaded()
        self._check(inputs)
        _use_threads(self.manifest.threads)
        self._normal = False
        for slot, array in zip(self._inputs, inputs, strict=True):
            slot.copyfrom(np.ascontiguousarray(array))
        result = self._run()
        if len(self.manifest.outputs) == 1 and not isinstance(result, (list, tuple)):
            return _numpy(result)
        arrays = tuple(_numpy(tensor) for tensor in result)
        return arrays[0] if len(arrays) == 1 else arrays

    def example_inputs(self, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Standard normal arrays of the right shapes (zeros for integer inputs)."""
        rng = np.random.default_rng(seed)
        return tuple(
            rng.standard_normal(t.shape).astype(t.dtype)
            if "float" in t.dtype
            else np.zeros(t.shape, t.dtype)
            for t in self.manifest.inputs
        )

    def latencies_us(self, repeats: int, *, warmup: int = 3) -> list[float]:
        """Microseconds of `repeats` inferences on standard normal inputs.

        Wall-clock time of single ones on a CPU. On a GPU the time between two CUDA events, of as
        many in a row as take EVENTS_MS, divided by their number.
        """
        if self.manifest.gpu:
            return self._between_events_us(repeats, warmup)
        inputs = self.example_inputs()
        for _ in range(max(1, warmup)):
            self(*inputs)
        times = []
        for _ in range(repeats):
            start = time.perf_counter_ns()
            self._main(*self._inputs)
            self._device.sync()
            times.append((time.perf_counter_ns() - start) / 1000)
        return times

    def _between_events_us(self, repeats: int, warmup: int) -> list[float]:
        self._check_loaded()
        if not self._normal:
            self(*self.example_inputs())
            self._normal = True
        for _ in range(max(1, warmup)):
            self._run()
        timer = self._machine.time_evaluator(
            "main", self._device, number=1, repeat=repeats, min_repeat_ms=EVENTS_MS
        )
        return [1e6 * seconds for seconds in timer(*self._inputs).results]

    def launch(self) -> None:
        """Start the network once more on the last inputs; `wait` says when it is done."""
        self._check_loaded()
        self._run()

    def wait(self) -> None:
        """Until the device has done what was started."""
        self._check_loaded()
        self._device.sync()

    def save(
        self, directory: str | os.PathLike[str], extra: Mapping[str, bytes] | None = None
    ) -> Path:
        """Write the artifact (and `extra` files) to `directory`, all or nothing."""
        path = Path(directory)
        with replace_directory(path) as staging:
            for code in (LIBRARY, CUBIN, CUBIN_SOURCE) if self.manifest.gpu else (LIBRARY,):
                shutil.copyfile(self.directory / code, staging / code)
            for name, data in (extra or {}).items():
                (staging / name).write_bytes(data)
            files = {file.name: _sha256(file) for file in sorted(staging.iterdir())}
            (staging / MANIFEST).write_text(replace(self.manifest, files=files).to_json())
        return path

    def _run(self) -> Any:
        try:
            return self._main(*self._inputs)
        except Exception as error:
            raise ArtifactError(
                f"does not run as its {MANIFEST} says: {error}",
                where=str(self.directory),
                hint=hint_of(error, "compile the model again"),
            ) from error

    def _check_loaded(self) -> None:
        if not self.loaded:
            raise ArtifactError(
                f"is for target {self.manifest.target!r} and does not run on this machine",
                where=str(self.directory),
                hint="save it, copy it to that machine and load it there",
            )

    def _check(self, inputs: Sequence[np.ndarray]) -> None:
        expected = self.manifest.inputs
        if len(inputs) != len(expected):
            raise ArtifactError(f"takes {len(expected)} inputs, {len(inputs)} given")
        for array, info in zip(inputs, expected, strict=True):
            given = (tuple(np.shape(array)), str(np.asarray(array).dtype))
            if given != (info.shape, info.dtype):
                raise ArtifactError(
                    f"expects {info.dtype} of shape {info.shape}, got {given[1]} of {given[0]}",
                    where=f"input {info.name!r}",
                )


def load(directory: str | os.PathLike[str]) -> Artifact:
    """Load an artifact directory. Needs NumPy and TVM, not torch.

    Raises ArtifactError if files are missing, altered, or need instructions that this CPU lacks.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    for name, digest in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError("is missing", where=str(file), hint="compile the model again")
        if _sha256(file) != digest:
            raise ArtifactError(
                "does not match its hash in manifest.json", where=str(file), hint="compile again"
            )
    return Artifact(path, manifest)


def read_manifest(directory: Path) -> Manifest:
    """Parse and validate `manifest.json` of an artifact directory."""
    file = directory / MANIFEST
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            "not an artifact directory", where=str(file), hint="pass the --out of a compile"
        ) from error
    manifest = Manifest.from_json(text, str(file))
    if LIBRARY not in manifest.files:
        raise ArtifactError(f"names no {LIBRARY}", where=str(file), hint="compile again")
    return manifest


def _thread_count(raw: Any) -> int:
    if int(raw) < 1:
        raise ValueError(f"{raw} threads")
    return int(raw)


def _tensor_info(raw: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(str(raw["name"]), tuple(int(d) for d in raw["shape"]), str(raw["dtype"]))


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.numpy())


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _use_threads(threads: int) -> None:
    if load_tvm().runtime.num_threads() != threads:
        set_threads(threads)


def _check_cpu(directory: Path, manifest: Manifest) -> None:
    cpu = read_cpu()
    missing = sorted(set(manifest.isa) - cpu.flags)
    if missing:
        raise ArtifactError(
            f"needs instructions that this CPU ({cpu.model}) lacks: {', '.join(missing)}",
            where=str(directory),
            hint=f"it was compiled for target {manifest.target!r}",
        )

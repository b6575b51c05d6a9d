"""The systems that are compared on the host, each as functions that run in own processes.

`prepare_NAME(model, threads, directory)` exports or compiles the network into `directory` and
returns facts about that; `load_NAME(threads, directory)` loads the result into a fresh process,
checks its output against PyTorch's, and returns a function that runs one inference. Packages
are imported inside, so one that is missing takes only its own system out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Runner = Callable[[], object]
INPUT, REFERENCE = "input.npy", "reference.npy"
TOLERANCE = 1e-3  # relative to the largest output


@dataclass(frozen=True)
class Contestant:
    """A system by name, the packages behind it, and what it runs ("dense" must equal PyTorch)."""

    name: str
    packages: tuple[str, ...]
    is_peer: bool = True


CONTESTANTS = (
    Contestant("eager", ("torch",)),
    Contestant("inductor", ("torch",)),
    Contestant("onnxruntime", ("onnxruntime", "onnx", "onnxscript")),
    Contestant("openvino", ("openvino",)),
    Contestant("executorch", ("executorch", "torchao")),
    Contestant("hwprune-dense", ("hwprune",), is_peer=False),
    Contestant("hwprune-pruned", ("hwprune",), is_peer=False),
)


def prepare_reference(model: str, threads: int, directory: str) -> dict[str, Any]:
    """Write the input and PyTorch's output, which every dense system must reproduce."""
    import torch

    module, x = _model(model, threads)
    with torch.inference_mode():
        output = module(x)
    np.save(Path(directory) / INPUT, x.numpy())
    np.save(Path(directory) / REFERENCE, output.numpy())
    return {}


def load_eager(model: str, threads: int, directory: str) -> Runner:
    import torch

    module, x = _model(model, threads)

    def run() -> Any:
        with torch.inference_mode():
            return module(x)

    return _checked(run, directory, lambda y: y.numpy())


def load_inductor(model: str, threads: int, directory: str) -> Runner:
    """torch.compile with freezing: weights are constants, packed for oneDNN, batch norm folded."""
    import torch
    import torch._inductor.config as config

    config.freezing = True
    config.compile_threads = 1
    module, x = _model(model, threads)
    compiled = torch.compile(module)

    def run() -> Any:
        with torch.no_grad():
            return compiled(x)

    return _checked(run, directory, lambda y: y.numpy())


def prepare_onnx(model: str, threads: int, directory: str) -> dict[str, Any]:
    """Export to ONNX, for ONNX Runtime and OpenVINO."""
    import torch

    module, x = _model(model, threads)
    started = time.perf_counter()
    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(Path(directory) / "model.onnx"))
    return {"prepare_s": round(time.perf_counter() - started, 2)}


def onnxruntime_session(threads: int, directory: str | Path, profile: str = "") -> Any:
    """The exported network in ONNX Runtime; `profile` begins the names of files of profiles."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    file = str(Path(directory) / "model.onnx")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def load_onnxruntime(model: str, threads: int, directory: str) -> Runner:
    session = onnxruntime_session(threads, directory)
    feed = {session.get_inputs()[0].name: np.load(Path(directory) / INPUT)}
    return _checked(lambda: session.run(None, feed), directory, lambda y: y[0])


def openvino_request(threads: int, directory: str | Path, **more: object) -> Any:
    """The exported network in OpenVINO with its input: float32, for latency, on so many threads."""
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        **more,
    }
    file = str(Path(directory) / "model.onnx")
    request = openvino.Core().compile_model(file, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.load(Path(directory) / INPUT)))
    return request


def load_openvino(model: str, threads: int, directory: str) -> Runner:
    request = openvino_request(threads, directory)

    def run() -> Any:
        request.infer()
        return request

    return _checked(run, directory, lambda r: r.get_output_tensor().data.copy())


def prepare_executorch(model: str, threads: int, directory: str) -> dict[str, Any]:
    """Lower to an ExecuTorch program that delegates to XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module, x = _model(model, threads)
    started = time.perf_counter()
    exported = torch.export.export(module, (x,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    (Path(directory) / "model.pte").write_bytes(lowered.to_executorch().buffer)
    return {"prepare_s": round(time.perf_counter() - started, 2)}


def load_executorch(model: str, threads: int, directory: str) -> Runner:
    import torch
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)
    x = torch.from_numpy(np.load(Path(directory) / INPUT))
    program = portable_lib._load_for_executorch(str(Path(directory) / "model.pte"))
    if portable_lib._threadpool_get_thread_count() != threads:
        raise RuntimeError(f"the thread pool does not have {threads} threads")
    return _checked(lambda: program.forward([x]), directory, lambda y: y[0].numpy())


def prepare_hwprune_dense(model: str, threads: int, directory: str) -> dict[str, Any]:
    import hwprune

    module, x = _model(model, threads)
    started = time.perf_counter()
    artifact = hwprune.compile(module, (x,), target="host", threads=threads, name=model)
    artifact.save(Path(directory) / "dense")
    return {"prepare_s": round(time.perf_counter() - started, 2)}


def prepare_hwprune_pruned(model: str, threads: int, directory: str) -> dict[str, Any]:
    """Prune to half the dense latency, compile, and keep what the tool itself reports."""
    import hwprune

    module, x = _model(model, threads)
    started = time.perf_counter()
    result = hwprune.prune(module, (x,), target="host", latency="50%", threads=threads, name=model)
    pruned_s = time.perf_counter() - started
    artifact = hwprune.compile(result.module, (x,), target="host", threads=threads, name=model)
    artifact.save(Path(directory) / "pruned")
    return {
        "prune_s": round(pruned_s, 2),
        "prepare_s": round(time.perf_counter() - started, 2),
        "predicted_us": result.report["pruned"]["predicted_us"],
        "prediction_error": round(result.report["prediction_error"], 4),
        "certificate": result.certificate.max_rel_error,
    }


def load_hwprune_dense(model: str, threads: int, directory: str) -> Runner:
    run = _artifact(Path(directory), "dense")
    return _checked(run, directory, lambda y: y)


def load_hwprune_pruned(model: str, threads: int, directory: str) -> Runner:
    """Not checked against the dense output: it is another function, proven by its certificate."""
    return _artifact(Path(directory), "pruned")


PREPARE: Mapping[str, str] = {
    "onnxruntime": "prepare_onnx",
    "openvino": "prepare_onnx",
    "executorch": "prepare_executorch",
    "hwprune-dense": "prepare_hwprune_dense",
    "hwprune-pruned": "prepare_hwprune_pruned",
}


def _artifact(directory: Path, name: str) -> Runner:
    import hwprune

    artifact = hwprune.load(directory / name)
    x = np.load(directory / INPUT)
    return lambda: artifact(x)


def _model(name: str, threads: int) -> tuple[Any, Any]:
    """The network and its input. Threads are limited here: this process runs PyTorch."""
    import torch

    from examples.models import build, example_input

    torch.set_num_threads(threads)
    return build(name), example_input(name)


def _checked(run: Runner, directory: str, output: Callable[[Any], Any]) -> Runner:
    """The runner, once its output has been found equal to PyTorch's."""
    expected = np.load(Path(directory) / REFERENCE)
    found = np.asarray(output(run()))
    if found.shape != expected.shape:
        raise ValueError(f"output has shape {found.shape}, PyTorch's has {expected.shape}")
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise ValueError(f"output differs from PyTorch's by {error:.1e} (relative)")
    return run

"""The C of an artifact in other projects: C++, CMake, Zephyr's, ESP-IDF's and Arduino's way."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hwprune.emulator.toolchain import find_tool, mcu_of
from hwprune.float_graph import FloatConv2d, FloatSoftmax
from hwprune.lower.mcu.model import lower_to_c
from hwprune.mcu_artifact import artifact_files
from hwprune.mcu_program import make_vectors, random_inputs
from hwprune.mcu_vectors import Vectors
from hwprune.quantize.graph import IntegerGraph, IntegerTensor
from hwprune.target import load_target
from tests.test_mcu_kernels import Bench

FACTS = dict.fromkeys(("FLASH", "INSTRUCTIONS", "LATENCY", "CALIBRATION", "DEFINES"), "")
STRICT = ("-Wall", "-Wextra", "-Werror")
SKETCH = """
#include "model.h"
static {type} x[HWPRUNE_MODEL_INPUT_SIZE], y[HWPRUNE_MODEL_OUTPUT_SIZE];
int main() {{ hwprune_model_run(x, y); return 0; }}
"""


def floats() -> IntegerGraph:
    x, y, z = (IntegerTensor(name, (1, 2, 2, 3), "float32") for name in "xyz")
    weight, bias = np.ones((3, 1, 1, 3), np.float32), np.zeros(3, np.float32)
    conv = FloatConv2d(
        "c", ("x",), "y", "", weight, bias, (1, 1), (0, 0, 0, 0), (1, 1), 1, (0, 6)
    )  # fmt: skip
    softmax = FloatSoftmax("s", ("y",), "z", "")
    return IntegerGraph("floats", (x, y, z), (conv, softmax), ("x",), ("z",))


def integers() -> IntegerGraph:
    bench = Bench(1)
    bench.conv((5, 5, 20), 20, (3, 3), groups=20, pads=(1, 1, 1, 1))
    return bench.graph()


@pytest.fixture(scope="module", params=["int8", "float32"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param)
    target = load_target("cortex-m4")
    model = lower_to_c(integers() if request.param == "int8" else floats(), target)
    inputs = random_inputs(model, 2)
    if request.param == "int8":
        vectors = make_vectors(model, inputs)
    else:
        # Three channels alike, of which softmax makes thirds.
        thirds = np.full(inputs[0].shape, 1 / 3, np.float32)
        vectors = Vectors(tuple(inputs), (thirds,), 1e-5)
    for name, text in artifact_files(model, target, vectors, FACTS).items():
        (out / name).write_text(text)
    return out


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_sketches_of_arduino_are_c_and_c_plus_plus(folder: Path, tmp_path: Path) -> None:
    text = (folder / "README.md").read_text()
    line = next(part for part in text.splitlines() if part.startswith("- Arduino"))
    for name in line.split("`")[1::2]:
        shutil.copy(folder / name, tmp_path)
    kind = "float" if "hwprune_float.h" in line else "int8_t"
    (tmp_path / "sketch.cpp").write_text(SKETCH.format(type=kind))
    run("gcc", "-std=gnu11", "-Os", *STRICT, "-c", "model.c", cwd=tmp_path)
    for standard in ("c++11", "gnu++17"):
        run("g++", f"-std={standard}", *STRICT, "sketch.cpp", "model.o", "-lm", cwd=tmp_path)
        run(tmp_path / "a.out")
    target = load_target("cortex-m55")
    gcc = find_tool(target, "gcc")
    flags = mcu_of(target).flags
    run(gcc, *flags, "-std=gnu11", "-Os", *STRICT, "-c", "model.c", cwd=tmp_path)
    run(gcc.removesuffix("gcc") + "g++", *flags, *STRICT, "-c", "sketch.cpp", cwd=tmp_path)


def test_the_folder_is_a_project_of_cmake(folder: Path, tmp_path: Path) -> None:
    run("cmake", "-S", folder, "-B", tmp_path)
    run("cmake", "--build", tmp_path)
    assert "100% tests passed" in run("ctest", "--test-dir", tmp_path)


def test_in_zephyr_it_takes_the_flags_of_the_core(folder: Path, tmp_path: Path) -> None:
    kind = "float" if (folder / "hwprune_float.h").exists() else "int8_t"
    (tmp_path / "main.cpp").write_text(SKETCH.format(type=kind))
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(app C CXX)\n"
        "add_library(zephyr_interface INTERFACE)\n"
        "target_compile_definitions(zephyr_interface INTERFACE CORE=7)\n"
        f"add_subdirectory({folder} model)\n"
        "add_executable(app main.cpp)\ntarget_link_libraries(app PRIVATE hwprune_model m)\n"
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "b", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    run("cmake", "--build", tmp_path / "b")
    commands = (tmp_path / "b" / "compile_commands.json").read_text()
    assert "-DCORE=7" in commands
    assert "host_test" not in commands


def test_for_esp_idf_it_is_a_component(folder: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.cmake"
    said.write_text(
        "set(ESP_PLATFORM 1)\nfunction(idf_component_register)\n"
        '  message("component ${ARGN}")\nendfunction()\n'
        f"include({folder}/CMakeLists.txt)\n"
    )
    done = subprocess.run(["cmake", "-P", said], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "component SRCS;model.c;INCLUDE_DIRS;."

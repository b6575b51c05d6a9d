from pathlib import Path

import pytest

from hwprune import target as target_module
from hwprune.errors import TargetError
from hwprune.host_cpu import CpuFacts, features, read_cpu, vector_unit
from hwprune.host_target import host_attributes
from hwprune.target import (
    check_runnable,
    list_targets,
    load_file,
    load_target,
    required_isa,
)
from hwprune.target_schema import TABLES, TOP

ROOT = Path(__file__).parent.parent
V3 = (ROOT / "targets/x86-64-v3/target.toml").read_text()


def write(directory: Path, text: str, name: str = "x86-64-v3") -> Path:
    file = directory / name / "target.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def facts(machine: str = "x86_64", flags: str = "", **more: object) -> CpuFacts:
    values = dict(
        model="test", cores=2, clock_hz=None, l1d_bytes=None, l2_bytes=None, l3_bytes=None
    )
    return CpuFacts(machine=machine, flags=frozenset(flags.split()), **(values | more))  # type: ignore[arg-type]


def test_shipped_targets_load() -> None:
    assert list_targets()[0] == "host"
    v3, v4 = load_target("x86-64-v3"), load_target("x86-64-v4")
    assert (v3.lanes, v4.lanes) == (8, 16)
    assert set(v3.isa) < set(v4.isa)
    assert v4.tvm_target["mcpu"] == "x86-64-v4"
    assert (v3.channel_alignment, v4.channel_alignment) == (8, 16)


ARM = ("cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "neoverse-n1")


@pytest.mark.parametrize("name", ARM)
def test_arm_targets_are_whole(name: str) -> None:
    target = load_target(name)
    assert (target.lanes, target.vector_registers, target.runner) == (4, 32, "rpc")
    assert target.core is not None
    assert target.core.lane_operand
    assert target.core.in_order == (name in ("cortex-a53", "cortex-a55"))
    assert target.l1d_bytes
    assert target.clock_hz
    assert target.memory_bytes_per_s
    assert target.sources
    assert target.board
    assert set(required_isa(target)) == set(target.isa)  # nothing that LLVM would add is unsaid


def test_template_is_a_target(tmp_path: Path) -> None:
    text = (ROOT / "docs/target-template.toml").read_text()
    target = load_file(write(tmp_path, text, "my-board"))
    assert target.core is not None
    assert target.core.mca_cpu == "cortex-a72"
    named = {line.lstrip("# ").split(" = ")[0] for line in text.splitlines() if " = " in line}
    tables = [keys for name, keys in TABLES.items() if name not in ("mcu", "gpu")]
    known = {key for keys in tables for key in keys} - {"sram_bytes", "flash_bytes"}
    assert known - {"arch"} <= named  # the template shows every key that an Arm board may have


def test_host_is_detected_and_runnable() -> None:
    host = load_target("host")
    check_runnable(host)
    assert host.tvm_target["mcpu"] not in ("native", "generic", "")
    assert host.cores >= 1
    assert host.lanes in (4, 8, 16)
    assert set(host.isa) <= read_cpu().flags


def test_host_code_uses_the_whole_vector() -> None:
    from hwprune.tvm_runtime import load_tvm

    host = load_target("host")
    tvm = load_tvm()
    implied = tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(host.tvm_target))
    assert "prefer-256-bit" not in {str(f) for f in implied} or host.vector_bits < 512


def test_microcontrollers_have_what_their_flow_needs(tmp_path: Path) -> None:
    shipped = [load_target(n) for n in list_targets() if n.startswith("cortex-m")]
    assert len(shipped) == 5
    for target in shipped:
        assert target.kind == "mcu"
        assert target.mcu is not None
        assert (target.mcu.core, target.mcu.flash_bytes) == (target.name, target.flash_bytes)
        assert ("dsp" in target.isa) == (target.name != "cortex-m0plus")
    text = (ROOT / "targets/cortex-m4/target.toml").read_text()
    lacking = text.replace("sram_bytes = 655_360\n", "")
    with pytest.raises(TargetError, match=r"memory.sram_bytes: is missing"):
        load_file(write(tmp_path, lacking, "cortex-m4"))
    lacking = text[: text.index("[mcu]")] + text[text.index("[toolchain]") :]
    with pytest.raises(TargetError, match=r"mcu.core: is missing"):
        load_file(write(tmp_path, lacking, "cortex-m4"))


def test_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(TargetError, match="did you mean 'x86-64-v3'"):
        load_target("x86-64v3")


def test_isa_this_machine_lacks_is_refused() -> None:
    with pytest.raises(TargetError, match="avx512f"):
        check_runnable(load_target("x86-64-v4"), facts(flags="avx avx2 fma"))


def test_remote_runner_is_refused_here(tmp_path: Path) -> None:
    file = write(tmp_path, V3.replace('kind = "local"', 'kind = "rpc"'))
    with pytest.raises(TargetError, match="rpc"):
        check_runnable(load_file(file))


@pytest.mark.parametrize(
    ("old", "new", "key", "said"),
    [
        ("vector_bits = 256", 'vector_bits = "256"', "isa.vector_bits", "whole number"),
        ("vector_bits = 256", "vector_bits = true", "isa.vector_bits", "whole number"),
        ("vector_bits = 256", "vector_bits = 100", "isa.vector_bits", "one of"),
        ("vector_bits = 256", "vektor_bits = 256", "isa.vektor_bits", "did you mean"),
        ("vector_bits = 256", "", "isa.vector_bits", "missing"),
        ("vector_registers = 16", "vector_registers = 0", "isa.vector_registers", "at least 1"),
        ("channels = 8", "channels = inf", "alignment.channels", "whole number"),
        ('kind = "cpu"', 'kind = "tpu"', "kind", "one of"),
        ('kind = "cpu"', 'kind = "cpu"\nextra = 1', "extra", "unknown key"),
        ("schema = 1", "schema = 2", "schema", "one of"),
        ('compiler = "g++"', "compiler = 1", "toolchain.compiler", "a text"),
        ('kind = "cpu"', 'kind = "cpu"\ncores = 8', "cores", "a table"),
        ("[alignment]", "[energy]\npj_per_mac = 1.0\n[alignment]", "energy.pj_per_byte", "missing"),
        ("[alignment]", "[cores]\nclock_hz = inf\n[alignment]", "cores.clock_hz", "at least"),
        ("schema = 1", "schema = = 1", "", "TOML"),
        ('name = "x86-64-v3"', 'name = "other"', "", "folder"),
    ],
)
def test_bad_files_name_file_and_key(
    tmp_path: Path, old: str, new: str, key: str, said: str
) -> None:
    assert old in V3
    file = write(tmp_path, V3.replace(old, new, 1))
    with pytest.raises(TargetError, match=said) as caught:
        load_file(file)
    assert str(file) in str(caught.value)
    assert key in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        load_file(tmp_path / "none" / "target.toml")


def test_user_directories_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = V3.replace('description = "', 'description = "mine: ')
    write(tmp_path, text)
    write(tmp_path, V3.replace("x86-64-v3", "board"), "board")
    monkeypatch.setenv("HWPRUNE_TARGETS", str(tmp_path))
    assert load_target("x86-64-v3").description.startswith("mine")
    assert load_target("board").name == "board"


def test_optional_tables(tmp_path: Path) -> None:
    more = """
[memory]
sram_bytes = 262144
flash_bytes = 1048576
bytes_per_s = 1e9
[energy]
pj_per_mac = 4.6
pj_per_byte = 640
source = "Horowitz 2014"
"""
    target = load_file(write(tmp_path, V3 + more))
    assert target.sram_bytes == 262144
    assert target.energy is not None
    assert target.energy.source == "Horowitz 2014"
    assert target.memory_bytes_per_s == 1e9


def test_aarch64_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = "processor\t: 0\nFeatures\t: fp asimd aes asimddp\nCPU part\t: 0xd0c\n"
    files = {
        "proc/cpuinfo": cpuinfo,
        "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
        "sys/devices/system/cpu/cpu0/cache/index0/type": "Data\n",
        "sys/devices/system/cpu/cpu0/cache/index0/size": "64K\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3000000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cpu = read_cpu(tmp_path, "aarch64")
    assert vector_unit(cpu) == (128, 32)
    assert set(features(cpu)) == {"asimd", "asimddp"}
    assert (cpu.l1d_bytes, cpu.l2_bytes, cpu.clock_hz) == (65536, None, 3e9)
    monkeypatch.setattr(target_module, "read_cpu", lambda: cpu)
    host = load_target("host")
    assert (host.lanes, host.vector_registers) == (4, 32)
    assert host.tvm_target["mattr"] == ["+neon"]


def test_hidden_instructions_are_taken_away() -> None:
    seen = "avx avx2 fma f16c bmi1 bmi2 avx512f avx512bw avx512cd avx512dq avx512vl"
    attributes = host_attributes(facts(flags=seen), "icelake-server")
    assert "-avx512vbmi" in attributes
    assert "-avx2" not in attributes
    assert "-prefer-256-bit" in attributes
    assert "-prefer-256-bit" not in host_attributes(facts(flags="avx avx2 fma"), "haswell")


def test_docs_name_every_key() -> None:
    text = (ROOT / "docs/targets.md").read_text()
    for name in TOP:
        assert f"`{name}`" in text or f"[{name}]" in text, name
    for table, keys in TABLES.items():
        for key in keys:
            assert f"`{table}.{key}`" in text, key


GPUS = {
    "nvidia-h200": ("sm_90", 132),
    "nvidia-a100": ("sm_80", 108),
    "nvidia-rtx4090": ("sm_89", 128),
    "jetson-orin": ("sm_87", 16),
    "jetson-tx2": ("sm_62", 2),
}


@pytest.mark.parametrize("name", GPUS)
def test_gpus_are_whole(name: str) -> None:
    target = load_target(name)
    gpu = target.gpu
    assert gpu is not None
    assert (gpu.architecture, gpu.sms) == GPUS[name]
    host = {"mtriple": "aarch64-linux-gnu"} if name.startswith("jetson") else {}
    assert target.tvm_target == {"kind": "cuda", "arch": gpu.architecture, **host}
    assert target.sources
    assert required_isa(target) == ()  # no words of a CPU
    lanes = gpu.vector_flop_per_s["float32"] / (2 * gpu.sms * gpu.clock_hz)
    assert lanes == pytest.approx(64 if gpu.capability == 80 else 128, rel=0.01)
    if gpu.capability < 70:
        assert (gpu.tensor_flop_per_s, gpu.tensor_tile) == ({}, None)
        return
    rates = gpu.tensor_flop_per_s
    assert rates["float16"] == pytest.approx(2 * rates["tf32"], rel=0.01)
    assert gpu.async_copy
    assert gpu.tensor_tile is not None
    rows, columns, depth = gpu.tensor_tile
    staged = 2 * (rows + columns) * depth * gpu.pipeline_stages  # float16 operands of a block
    assert staged <= gpu.shared_bytes_per_block


H200 = (ROOT / "targets/nvidia-h200/target.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "key", "said"),
    [
        ('arch = "sm_90"', 'arch = "hopper"', "tvm.arch", "like sm_80"),
        ('arch = "sm_90"', "", "tvm.arch", "missing"),
        ('arch = "sm_90"', 'arch = "sm_70"', "gpu.tensor_int8_flop_per_s", "since sm_72"),
        ('kind = "cuda"\narch', 'kind = "llvm"\narch', "tvm.kind", "cuda"),
        ("count = 132", "", "cores.count", "missing"),
        ("l2_bytes = 62_914_560", "", "memory.l2_bytes", "missing"),
        ("launch_us = 1.5", "", "gpu.launch_us", "missing"),
        ("[128, 128, 64]", "[128, 128]", "gpu.tensor_tile", "three sizes"),
        ("[128, 128, 64]", "[128, 128.0, 64]", "gpu.tensor_tile", "whole numbers"),
        ("tensor_tile = [128, 128, 64]", "", "gpu.tensor_tile", "only there"),
        ("block = 232_448", "block = 233_473", "gpu.shared_bytes_per_block", "multiprocessor"),
        ("float32_flop_per_s = 66.9e12", "", "gpu.float32_flop_per_s", "missing"),
        ("[gpu]", "[gpus]", "gpus", "unknown key"),
    ],
)
def test_bad_gpus_name_file_and_key(
    tmp_path: Path, old: str, new: str, key: str, said: str
) -> None:
    assert old in H200
    file = write(tmp_path, H200.replace(old, new, 1), "nvidia-h200")
    with pytest.raises(TargetError, match=said) as caught:
        load_file(file)
    assert str(file) in str(caught.value)
    assert key in str(caught.value)


def test_a_gpu_has_its_table_and_no_one_else(tmp_path: Path) -> None:
    table = H200[H200.index("[gpu]") : H200.index("[alignment]")]
    with pytest.raises(TargetError, match=r"\[gpu\]: is missing"):
        load_file(write(tmp_path, H200.replace(table, ""), "nvidia-h200"))
    with pytest.raises(TargetError, match="for kind cuda only"):
        load_file(write(tmp_path, V3 + table))

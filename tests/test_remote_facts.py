"""What is read of a board, and how boards are written on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hwprune.errors import HwpruneError, TargetError
from hwprune.remote.address import Address, Boards, read_address, read_boards
from hwprune.remote.facts import BoardFacts, check_board, read_facts
from hwprune.target import load_target
from tests.command_line import Done, refused

A53 = load_target("cortex-a53")
A72 = load_target("cortex-a72")
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
CPU = "/sys/devices/system/cpu/cpu"


def cpuinfo(parts: list[str]) -> str:
    return "".join(
        f"processor\t: {i}\nBogoMIPS\t: 48.00\nFeatures\t: {FEATURES}\n"
        f"CPU implementer\t: 0x41\nCPU part\t: {part}\nCPU revision\t: 4\n\n"
        for i, part in enumerate(parts)
    )


def clocks(highest_khz: list[int], now_khz: list[int], governor: str) -> dict[str, str]:
    files = {}
    for i, (highest, now) in enumerate(zip(highest_khz, now_khz, strict=True)):
        files[f"{CPU}{i}/cpufreq/cpuinfo_max_freq"] = f"{highest}\n"
        files[f"{CPU}{i}/cpufreq/scaling_cur_freq"] = f"{now}\n"
        files[f"{CPU}{i}/cpufreq/scaling_governor"] = f"{governor}\n"
    return files


MEMORY = "MemTotal:        3884348 kB\nMemFree:          100000 kB\nMemAvailable:    3111111 kB\n"
RK3399 = {
    "/proc/cpuinfo": cpuinfo(["0xd03"] * 4 + ["0xd08"] * 2),
    "/proc/meminfo": MEMORY,
    "/proc/device-tree/model": "Pine64 RockPro64 v2.1\0",
    **clocks([1416000] * 4 + [1800000] * 2, [1416000] * 4 + [1800000] * 2, "performance"),
}
PI4 = {
    "/proc/cpuinfo": cpuinfo(["0xd08"] * 4),
    "/proc/meminfo": MEMORY,
    "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    f"{CPU}0/cache/index0/level": "1\n",
    f"{CPU}0/cache/index0/size": "32K\n",
    f"{CPU}0/cache/index0/type": "Data\n",
    "/sys/class/thermal/thermal_zone0/temp": "51608\n",
    "/home/pi/tvm/lib/python3.11/site-packages/tvm/_version.py": (
        "__version__: str\n__version__ = version = '0.27.0.post1'\n"
    ),
    **clocks([1500000] * 4, [1500000] * 4, "performance"),
}


def pi4(**files: str) -> BoardFacts:
    return read_facts(range(4), PI4 | files, A72, 1)


def test_a_raspberry_pi() -> None:
    facts = pi4()
    assert (facts.model, facts.core_name) == ("Raspberry Pi 4 Model B Rev 1.4", "cortex-a72")
    assert (facts.cores, facts.pinned) == ((0, 1, 2, 3), (3,))
    assert (facts.cpu.machine, facts.cpu.cores, facts.cpu.l1d_bytes) == ("aarch64", 4, 32768)
    assert (facts.clock_hz, facts.highest_hz) == (1.5e9, 1.5e9)
    assert (facts.memory_bytes, facts.available_bytes) == (3884348 * 1024, 3111111 * 1024)
    assert (facts.temperature_c, facts.tvm) == (51.608, "0.27.0.post1")
    assert facts.warnings(worked=True) == ()
    assert facts.brief == (
        "board Raspberry Pi 4 Model B Rev 1.4, core 3, 1500 MHz, 52 C, its tvm 0.27.0.post1"
    )


@pytest.mark.parametrize(
    ("target", "threads", "pinned"), [(A72, 1, (5,)), (A72, 2, (5, 4)), (A53, 2, (3, 2))]
)
def test_threads_stay_on_the_cores_of_the_target(
    target: object, threads: int, pinned: tuple[int, ...]
) -> None:
    facts = read_facts(range(6), RK3399, target, threads)  # type: ignore[arg-type]
    assert facts.pinned == pinned


def test_a_board_that_keeps_some_cores_to_itself() -> None:
    facts = read_facts([0, 1, 2, 3], RK3399, A72, 1)
    with pytest.raises(TargetError, match="the board's cores are cortex-a53") as error:
        check_board(facts, A72, "board:9090")
    assert error.value.where == "board:9090"
    check_board(replace(facts, cpu=facts.cpu), A53, "board:9090")


def test_a_board_without_the_instructions() -> None:
    a76 = replace(load_target("cortex-a76"), tvm_target={**A72.tvm_target, "mcpu": "cortex-a72"})
    with pytest.raises(TargetError, match="asimddp"):
        check_board(pi4(), a76, "board:9090")


def test_kinds_of_boards_have_fingerprints() -> None:
    same = pi4(**{"/proc/meminfo": MEMORY.replace("3884348", "3884000")})
    assert same.fingerprint == pi4().fingerprint
    assert pi4(**{"/sys/class/thermal/thermal_zone0/temp": "70000"}).fingerprint == (
        pi4().fingerprint
    )
    others = [
        pi4(**clocks([1800000] * 4, [1800000] * 4, "performance")),
        pi4(**{"/proc/meminfo": MEMORY.replace("3884348", "7884348")}),
        pi4(**{"/proc/device-tree/model": "Raspberry Pi 400"}),
        read_facts(range(3), PI4, A72, 1),
        read_facts(range(6), RK3399, A72, 1),
        read_facts(range(6), RK3399, A53, 1),
    ]
    found = {facts.fingerprint for facts in (pi4(), *others)}
    assert len(found) == 1 + len(others)
    assert all(name.startswith("aarch64-") for name in found)


@pytest.mark.parametrize(
    ("files", "worked", "said"),
    [
        (clocks([1500000] * 4, [600000] * 4, "ondemand"), False, "governed by 'ondemand'"),
        (clocks([1500000] * 4, [1000000] * 4, "performance"), True, "1000 of 1500 MHz"),
        ({"/sys/class/thermal/thermal_zone0/temp": "80123"}, True, "at 80 degrees C"),
        (
            {"/sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n"},
            False,
            "reports: under-voltage, throttled",
        ),
    ],
)
def test_what_makes_latencies_doubtful(files: dict[str, str], worked: bool, said: str) -> None:
    warnings = pi4(**files).warnings(worked=worked)
    assert len(warnings) == 1
    assert said in warnings[0]


def test_past_throttling_is_not_warned_about() -> None:
    past = {"/sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n"}
    assert pi4(**past).warnings(worked=True) == ()


def test_a_board_that_says_little() -> None:
    facts = read_facts([0], {}, A72, 1)
    assert (facts.clock_hz, facts.temperature_c, facts.memory_bytes, facts.tvm) == (
        None, None, 0, "",
    )  # fmt: skip
    assert facts.warnings(worked=True) == ()
    with pytest.raises(TargetError, match="2 threads on a board with 1 cores"):
        read_facts([0], {}, A72, 2)


def test_addresses() -> None:
    assert read_address("pi.local:9090", "--rpc") == Address("pi.local", 9090)
    found = read_address("[::1]:9090", "--rpc")
    assert (found.host, str(found)) == ("::1", "[::1]:9090")
    boards = read_boards(None, "pc:9190", "rpi4", 8, 3.0)
    assert isinstance(boards, Boards)
    assert (boards.key, boards.devices, boards.patience.kernel_s) == ("rpi4", 8, 3.0)
    assert read_boards(None) is None


@pytest.mark.parametrize("text", ["", "pi", "pi:", ":9090", "pi:ssh", "pi:0", "pi:65536", "pi:-1"])
def test_no_address(text: str) -> None:
    with pytest.raises(HwpruneError, match="is not HOST:PORT"):
        read_address(text, "--rpc")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rpc", "pi"), "--rpc: 'pi' is not HOST:PORT"),
        (("--rpc", "pi:1", "--tracker", "pc:1"), "exclude each other"),
        (("--tracker", "pc:9190"), "--key: is missing"),
        (("--key", "rpi4"), "--key: needs --rpc or --tracker"),
        (("--devices", "2"), "--devices: needs --rpc or --tracker"),
        (("--rpc", "pi:9090", "--devices", "2"), "--devices: needs --tracker"),
        (("--tracker", "pc:9190", "--key", "a", "--devices", "0"), "--devices: 0 boards"),
        (("--rpc", "pi:9090", "--timeout", "0"), "--timeout: 0 s"),
        (("--rpc", "pi:9090", "--timeout", "nan"), "--timeout: nan s"),
    ],
)
@pytest.mark.parametrize("command", ["profile", "compile"])
def test_mistakes_on_the_command_line(
    run: Callable[..., Done], command: str, options: tuple[str, ...], said: str
) -> None:
    more = ("--out", "unused", "--latency", "50%") if command == "compile" else ()
    done = run(command, "tests.small_net:small_net", *more, *options)
    refused(done, said)
    assert done.out == ""

"""Bare programs on the emulated boards: counts, time-outs, missing tools, too little memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwprune.emulator.boards import board_of
from hwprune.emulator.count import Executed, count_phases
from hwprune.emulator.cycles import RATIO, estimate, is_branch, model_cycles
from hwprune.emulator.link import linker_script
from hwprune.emulator.program import build_elf, instructions, run_elf
from hwprune.emulator.toolchain import find_emulator, find_tool, mcu_of
from hwprune.errors import BudgetError, ToolchainError
from hwprune.target import load_target

CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "cortex-m0plus")
COUNTED = """
#include "harness.h"
int main(void) {
  hwprune_harness_init();
  const int counts[2] = {1000, LONG};
  for (int k = 0; k < 2; ++k) {
    hwprune_start();
    int i = counts[k];
    __asm__ volatile(".syntax unified\\n1: subs %0, #1\\n bne 1b" : "+l"(i));
    uint64_t ticks = hwprune_stop();
    hwprune_print_number(ticks);
    hwprune_print("\\n");
  }
  return 0;
}
"""


def program(folder: Path, text: str) -> Path:
    file = folder / "test.c"
    file.write_text(text)
    return file


@pytest.mark.parametrize("core", CORES)
def test_instructions_are_counted_on_every_board(core: str, tmp_path: Path) -> None:
    target = load_target(core)
    elf = build_elf(target, [program(tmp_path, COUNTED.replace("LONG", "12000000"))], tmp_path)
    first, second = run_elf(target, elf.path), run_elf(target, elf.path)
    assert first == second
    short, long = (instructions(target, int(line)) for line in first.split())
    assert abs(short - 2000) <= 10
    # Longer than SysTick's 24 bits count: a few dozen instructions for every time it wraps.
    assert 0 <= long - 24_000_000 < 1000
    assert 500 < elf.flash_bytes < 4000
    assert elf.sram_bytes > 4096


def test_every_instruction_has_its_count(tmp_path: Path) -> None:
    target = load_target("cortex-m4")
    elf = build_elf(target, [program(tmp_path, COUNTED.replace("LONG", "1000"))], tmp_path)
    phases = count_phases(target, elf)
    assert len(phases) == 2
    for name in ("subs", "bne"):
        often = [[e.count for e in p if e.mnemonic.startswith(name)] for p in phases]
        assert [max(counts) for counts in often] == [1000, 1000], name
    plain = estimate(target, sum(map(model_cycles, phases)))
    assert 6000 < plain.cycles < 8200  # a subtraction, a branch, two cycles to take it
    m7 = load_target("cortex-m7")
    elf = build_elf(m7, [program(tmp_path, COUNTED.replace("LONG", "1000"))], tmp_path)
    faster = estimate(m7, sum(map(model_cycles, count_phases(m7, elf))))
    assert faster.cycles == pytest.approx(plain.cycles * RATIO["cortex-m7"], rel=0.05)
    assert faster.latency_ms == pytest.approx(1e3 * faster.cycles / 216e6, rel=1e-3)


def test_cycles_of_a_loop() -> None:
    executed = [
        Executed(0, "ldr", "r0, [r1]", 10),
        Executed(2, "ldr", "r2, [r1, #4]", 10),
        Executed(4, "smlad", "r0, r2, r3, r0", 10),
        Executed(8, "str", "r0, [r4, #8]", 10),
        Executed(10, "str", "r0, [r4, r5]", 10),
        Executed(12, "ldrd", "r0, r1, [r6]", 10),
        Executed(16, "bne", "0", 10),
        Executed(18, "pop", "{r4-r6, pc}", 1),
    ]
    assert model_cycles(executed) == 10 * (2 + 1 + 1 + 1 + 2 + 3 + 1) + 2 * 9 + 5
    assert [is_branch(m) for m in ("b", "bne", "blx", "cbz", "bic", "bfi", "bkpt", "add")] == [
        True, True, True, True, False, False, False, False,
    ]  # fmt: skip


def test_a_program_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    target = load_target("cortex-m4")
    elf = build_elf(target, [program(tmp_path, "int main(void) { for (;;) {} }")], tmp_path)
    with pytest.raises(ToolchainError, match="did not end within 1 s on the emulated mps2-an386"):
        run_elf(target, elf.path, timeout_s=1)


def test_a_fault_is_an_error(tmp_path: Path) -> None:
    target = load_target("cortex-m4")
    text = "int main(void) { *(volatile int *)0xA0000000u = 1; return 0; }"
    elf = build_elf(target, [program(tmp_path, text)], tmp_path)
    with pytest.raises(ToolchainError, match="failed on the emulated mps2-an386 with status 3"):
        run_elf(target, elf.path)


def test_memory_that_is_too_small_is_named(tmp_path: Path) -> None:
    target = load_target("cortex-m7")
    text = "static volatile char big[400000]; int main(void) { return big[0] + big[399999]; }"
    with pytest.raises(
        BudgetError, match=r"does not fit cortex-m7: region `SRAM' overflowed by \d"
    ):
        build_elf(target, [program(tmp_path, text)], tmp_path)


def test_missing_programs_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolchainError, match="Debian package gcc-arm-none-eabi"):
        find_tool(load_target("cortex-m4"), "gcc")
    with pytest.raises(ToolchainError, match="Debian package qemu-system-arm"):
        find_emulator()


def test_what_is_no_microcontroller_or_has_no_board() -> None:
    with pytest.raises(ToolchainError, match="no microcontroller"):
        mcu_of(load_target("x86-64-v3"))
    m4 = load_target("cortex-m4")
    assert m4.mcu is not None
    with pytest.raises(ToolchainError, match="has no emulated board"):
        board_of(replace(m4, mcu=replace(m4.mcu, machine="")))
    with pytest.raises(ToolchainError, match="'mps9'"):
        board_of(replace(m4, mcu=replace(m4.mcu, machine="mps9")))


def test_device_scripts_keep_vectors_in_flash() -> None:
    text = linker_script(0x0800_0000, 1 << 20, 0x2000_0000, 1 << 16)
    assert "EXTRA" not in text
    assert "LENGTH = 65536" in text
    assert text.count("> FLASH") == 4

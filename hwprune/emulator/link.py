"""Linker scripts: code and constants in flash, data and stack in SRAM, test vectors apart."""

from __future__ import annotations

from hwprune.emulator.boards import Region

STACK_BYTES = 4096

_SCRIPT = """\
/* Code and constants in FLASH, data in SRAM. The sizes are the device's: what does not fit
   does not link. */
ENTRY(Reset_Handler)
MEMORY
{{
  FLASH (rx) : ORIGIN = 0x{code:08x}, LENGTH = {flash}
  SRAM (rwx) : ORIGIN = 0x{data:08x}, LENGTH = {sram}
{extra}}}
SECTIONS
{{
  .text :
  {{
    KEEP(*(.isr_vector))
    *(.text*)
    *(.rodata*)
    . = ALIGN(8);
  }} > FLASH
  .ARM.exidx :
  {{
    *(.ARM.exidx*)
    . = ALIGN(8);
  }} > FLASH
  .data :
  {{
    hwprune_data_start = .;
    *(.data*)
    . = ALIGN(8);
    hwprune_data_end = .;
  }} > SRAM AT > FLASH
  hwprune_data_load = LOADADDR(.data);
  .bss (NOLOAD) :
  {{
    hwprune_bss_start = .;
    *(.bss*)
    *(COMMON)
    . = ALIGN(8);
    hwprune_bss_end = .;
  }} > SRAM
  .stack (NOLOAD) :
  {{
    . = . + {stack};
    . = ALIGN(8);
    hwprune_stack_top = .;
  }} > SRAM
{vectors}  /DISCARD/ :
  {{
    *(.comment)
  }}
}}
"""
_VECTORS = """\
  .vectors :
  {{
    *(.vectors*)
  }} > {region}
"""


def linker_script(
    code: int,
    flash_bytes: int,
    data: int,
    sram_bytes: int,
    extra: Region | None = None,
    stack_bytes: int = STACK_BYTES,
) -> str:
    """The script for a memory map: origins of code and data, sizes in bytes.

    `extra` holds the section `.vectors`, which is then no part of the flash.
    """
    region = ""
    if extra:
        region = f"  EXTRA (rw) : ORIGIN = 0x{extra.origin:08x}, LENGTH = {extra.size}\n"
    return _SCRIPT.format(
        code=code,
        flash=flash_bytes,
        data=data,
        sram=sram_bytes,
        stack=stack_bytes,
        extra=region,
        vectors=_VECTORS.format(region="EXTRA" if extra else "FLASH"),
    )

"""`hwprune board`: a board on a serial port runs an artifact and says what it counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hwprune.atomic import write_text
from hwprune.commands import app
from hwprune.shown import print_json

Folder = Annotated[Path, typer.Argument(help="What hwprune compile wrote.", metavar="DIR")]
Port = Annotated[str, typer.Option(help="/dev/ttyACM0, COM3, or socket://host:port.")]
Baud = Annotated[int, typer.Option(help="Bits a second.", min=1)]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for every answer.", min=0.1)]
Rows = Annotated[Path | None, typer.Option("--out", "-o", help="A JSON file for the counts.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("board")
def board_command(
    folder: Folder,
    port: Port,
    baud: Baud = 115_200,
    timeout: Timeout = 10.0,
    out: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Run a microcontroller's artifact on a board over its serial port; cycles of every kernel.

    Flash serial.elf first (make serial, with your uart.c): docs/microcontrollers.md.
    """
    from hwprune.mcu_serial import run_on_board

    facts = run_on_board(folder, port, baud=baud, timeout_s=timeout)
    if out is not None:
        write_text(out, json.dumps(facts, indent=1) + "\n")
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    console = Console()
    unit = "cycles" if "cycles" in facts else "instructions"
    took = f", {facts['latency_ms']:.3f} ms" if "latency_ms" in facts else ""
    console.print(
        f"{facts['model']} on {facts['target']}: {facts[unit]:,} {unit}{took} ({facts['source']}); "
        f"{facts['equal']} of {facts['test_vectors']} test vectors equal the reference"
    )
    for kernel in facts["kernels"]:
        each = f" ({kernel[unit] / kernel['macs']:.2f} a MAC)" if kernel["macs"] else ""
        console.print(f"  {kernel['name']}: {kernel[unit]:,} {unit}{each}")

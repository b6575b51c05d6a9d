"""A network for a microcontroller before a budget is applied: coupled, quantized, its kernels.

In: a `Program` and a `Target` of kind "mcu". Out: `McuPrepared`, and its table filled.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from hwprune.capture import Program
from hwprune.forms import Forms
from hwprune.mcu_price.measure import measure_kernels
from hwprune.mcu_price.network import calibration_inputs
from hwprune.mcu_price.sites import Sized, sized
from hwprune.measure import Measured
from hwprune.prepare import Prepared, prepare
from hwprune.price import required
from hwprune.progress import Advance
from hwprune.provenance import provenance_of
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.table import LatencyTable
from hwprune.target import Target


@dataclass(frozen=True)
class McuPrepared:
    """A `Prepared` network (its groups, candidate widths, MACs), and the same as integers.

    `sized` has the kernels of the int8 network as functions of the widths.
    """

    prepared: Prepared
    quantized: Quantized
    sized: Sized


def prepare_mcu(
    program: Program,
    target: Target,
    forms: Forms,
    given: Tensor | None = None,
    config: QuantConfig | None = None,
) -> McuPrepared:
    """Couple and quantize; without `given` calibrated on random inputs, for the shapes alone."""
    prepared = prepare(program, target, 1, **asdict(forms))
    images = calibration_inputs(program, given, 0)[0]
    quantized = quantize_program(program, images, config)
    return McuPrepared(prepared, quantized, sized(quantized, prepared.coupling))


def fill_table(ready: McuPrepared, table: LatencyTable, advance: Advance) -> Measured:
    """Measure the kernels that pricing this network needs and the table lacks."""
    needed = required(ready.sized.kernels, ready.prepared.candidates)
    return measure_kernels(needed, ready.prepared.target, table, advance)


def open_table(target: Target) -> LatencyTable:
    """The table of a microcontroller's emulated board, of today's compiler and kernels."""
    return LatencyTable.open(provenance_of(target))

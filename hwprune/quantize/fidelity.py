"""What quantization costs, value by value: float against its simulation against integers.

In: a `Quantized` and inputs. Out: a `ValueFidelity` for every operator's result, in network order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx

from hwprune.quantize.graph import INT8
from hwprune.quantize.observe import visit
from hwprune.quantize.quantizer import Quantized
from hwprune.quantize.reference import dequantize, run_all
from hwprune.quantize.simulate import ROUNDING


@dataclass(frozen=True)
class ValueFidelity:
    """How near the integers of one value come.

    `snr_db`: signal to noise of the integers against the float network, in decibels.
    `within_one_step`: share of the integers that are at most one step from the simulation's.
    `furthest_steps`: the largest distance to the simulation, in steps.
    """

    name: str
    kind: str
    snr_db: float
    within_one_step: float
    furthest_steps: int


def value_fidelity(quantized: Quantized, inputs: Tensor) -> tuple[ValueFidelity, ...]:
    """Compare all values on inputs (N, …), as torch has them."""
    names = {step.result.name for step in quantized.steps}
    exact = _values(quantized.folded.module, names, inputs)
    rounded = _values(quantized.simulation(), names, inputs)
    integers = run_all(quantized.graph, quantized.integers(inputs))
    rows = []
    for step in quantized.steps:
        tensor_name, order = quantized.placed[step.result.name]
        tensor = quantized.graph.by_name[tensor_name]
        if tensor.dtype != INT8 or step.kind == "reshape":  # columns may lie in another order
            continue
        back = [order.index(d) for d in range(len(order))]
        found = integers[tensor_name].transpose(back)
        real = dequantize(found, tensor.scale, tensor.zero_point)
        apart = np.abs(real - rounded[step.result.name]) / tensor.scale
        rows.append(
            ValueFidelity(
                step.result.name,
                step.kind,
                snr_db(exact[step.result.name], real),
                float((apart < 1.5).mean()),
                int(np.rint(apart.max(initial=0.0))),
            )
        )
    return tuple(rows)


def snr_db(signal: np.ndarray, found: np.ndarray) -> float:
    """10 log10 of the signal's energy over the error's; inf where there is none."""
    wanted = signal.astype(np.float64)
    noise = float(np.square(wanted - found).sum())
    energy = float(np.square(wanted).sum())
    return float("inf") if noise == 0.0 else 10.0 * float(np.log10(max(energy, 1e-300) / noise))


def _values(module: fx.GraphModule, names: set[str], inputs: Tensor) -> dict[str, np.ndarray]:
    """The values of nodes by name; where a value is rounded at once, the rounded one."""
    found: dict[str, np.ndarray] = {}
    rounded = {
        node.name: str(node.args[0])
        for node in module.graph.nodes
        if node.target in ROUNDING and str(node.args[0]) in names
    }
    own = {name: name for name in names - set(rounded.values())} | rounded

    def keep(name: str, value: Tensor) -> None:
        found[own[name]] = value.numpy()

    visit(module, [inputs], own, keep)
    return found

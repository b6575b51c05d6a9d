"""Post-training static quantization: `Program` + calibration data -> `Quantized`.

The list of stages: fold, find steps, equalise, observe, choose scales, correct biases, emit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx

from hwprune.errors import HwpruneError
from hwprune.given import as_images
from hwprune.lower.fold import fold_batch_norm
from hwprune.lower.functional import packet, value
from hwprune.lower.movement import is_alias
from hwprune.program import Program, specialize, symbolic_dims
from hwprune.quantize.bias import correct_biases
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.emit import emit
from hwprune.quantize.equalise import equalise
from hwprune.quantize.graph import IntegerGraph
from hwprune.quantize.observe import observe
from hwprune.quantize.placement import Order
from hwprune.quantize.reference import dequantize, quantize, run_all
from hwprune.quantize.scheme import Scheme, make_scheme, sharing
from hwprune.quantize.simulate import own_graph, simulate, with_weights_of
from hwprune.quantize.steps import QuantStep, find_steps
from hwprune.recover.sweep import as_batches

BATCH = 32  # of calibration


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized network.

    `graph` is what runs on the device; `placed` says in which of its tensors, and in what order of
    axes, the value of a node lies. `folded` is the float network that it stands for, `steps` and
    `scheme` how it was quantized: enough to simulate, to train on and to quantize again.
    """

    graph: IntegerGraph
    placed: Mapping[str, tuple[str, Order]]
    folded: Program
    steps: tuple[QuantStep, ...]
    scheme: Scheme

    def simulation(self) -> fx.GraphModule:
        """The network in float with every value and weight rounded; trains."""
        return simulate(self.folded, self.steps, self.scheme)

    def with_weights(self, trained: fx.GraphModule) -> Quantized:
        """The same scales of values with the weights of a trained `simulation`."""
        return _emitted(with_weights_of(self.folded, trained), self.scheme, self._fallback())

    def __call__(self, *inputs: Tensor | np.ndarray) -> tuple[np.ndarray, ...]:
        """Float outputs for float inputs as torch has them, through the integer reference."""
        values = run_all(self.graph, self.integers(*inputs))
        return tuple(self.real(values[name], name) for name in self.graph.outputs)

    def integers(self, *inputs: Tensor | np.ndarray) -> list[np.ndarray]:
        """int8 inputs of the graph, images as (N, H, W, C), for float inputs as torch has them."""
        found = []
        for name, given in zip(self.graph.inputs, inputs, strict=True):
            array = np.asarray(given, np.float32)
            array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
            tensor = self.graph.by_name[name]
            found.append(quantize(np.ascontiguousarray(array), tensor.scale, tensor.zero_point))
        return found

    def real(self, integers: np.ndarray, name: str) -> np.ndarray:
        """Float values as torch has them, images as (N, C, H, W), of a tensor of the graph."""
        tensor = self.graph.by_name[name]
        array = dequantize(integers, tensor.scale, tensor.zero_point)
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array

    def _fallback(self) -> bool:
        return any(step.kind == "float" for step in self.steps)


def quantize_program(
    program: Program,
    calibration: Tensor | Sequence[Tensor],
    config: QuantConfig | None = None,
) -> Quantized:
    """Quantize a network (pruned or not) to int8.

    Args:
        program: its one input is float32, batch first.
        calibration: inputs like those that it will get, (N, …) float32; a hundred say much.
        config: see QuantConfig.

    Raises HwpruneError for calibration data of a wrong shape, all zeros or not finite, and
    LoweringError for operators without an int8 kernel and accumulators that can overflow.
    """
    config = (config or QuantConfig()).checked()
    images = check_calibration(program, calibration)
    folded = fold_for_integers(program)
    batches = _batches(folded, images)
    steps = find_steps(folded, config.float_fallback)
    if config.equalise:
        folded = equalise(folded, steps)
        steps = find_steps(folded, config.float_fallback)
    names = [n.name for n in folded.module.graph.nodes if n.op == "placeholder"]
    owner, known = sharing(names, steps)
    seen = {name: o for name, o in owner.items() if o not in known.values}
    ranges = observe(folded.module, batches, seen, config.method, config.percentile)
    scheme = make_scheme(owner, known, ranges)
    if config.correct_bias:
        folded = correct_biases(folded, steps, scheme, batches)
    return _emitted(folded, scheme, config.float_fallback)


def _batches(folded: Program, images: Tensor) -> list[Tensor]:
    """The calibration data in batches, or one by one where the program has a batch of one in it."""
    batches = [batch for (batch,) in as_batches(images.split(BATCH), folded)]
    try:
        with torch.no_grad():
            folded.module(batches[0])
    except RuntimeError:
        return list(images.split(1))
    return batches


def _emitted(folded: Program, scheme: Scheme, float_fallback: bool) -> Quantized:
    steps = find_steps(folded, float_fallback)
    return Quantized(*emit(folded, steps, scheme), folded, steps, scheme)


def check_calibration(program: Program, calibration: Tensor | Sequence[Tensor]) -> Tensor:
    """The data as one float32 tensor. Raises HwpruneError for data that say nothing."""
    kinds = {value.dtype for value in (*program.inputs, *program.module.parameters())}
    if kinds != {torch.float32}:
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise HwpruneError(
            f"only float32 networks can be quantized, this one is {found}", where=program.name
        )
    images = as_images(calibration, program)
    assert images is not None
    if not bool(images.any()):
        raise HwpruneError(
            "all calibration inputs are zero: no range can be learnt from them",
            where="calibrate",
            hint="give inputs like those that the network will get",
        )
    return images


def fold_for_integers(program: Program) -> Program:
    """The folded program of a batch of one, which still runs on any batch if `program` does.

    Raises HwpruneError for a program that takes batches of another size alone.
    """
    batch = len(program.inputs[0])
    if batch != 1 and not program.dynamic_batch:
        raise HwpruneError(
            f"the network takes batches of exactly {batch}; integers run one input at a time",
            where=program.name,
            hint="export it with a batch of one, or with a dynamic batch",
        )
    one = replace(program, inputs=tuple(x[:1] for x in program.inputs))
    folded = fold_batch_norm(specialize(one if program.dynamic_batch else program))
    module = own_graph(folded)
    for node in module.graph.nodes:
        if not program.dynamic_batch or 0 not in symbolic_dims(node):
            continue
        sizes = [-1, *value(node).shape[1:]]
        if is_alias(node):
            node.target = torch.ops.aten.reshape.default
            node.args, node.kwargs = (node.args[0], sizes), {}
        elif packet(node) == "aten.expand" and 0 in symbolic_dims(node.args[0]):
            node.args, node.kwargs = (node.args[0], sizes), {}
    module.recompile()
    return Program(module, folded.inputs, program.name, program.dynamic_batch)

"""Layer-wise reconstruction: least squares on unlabelled images, in network order.

Each convolution and linear of the pruned network is fitted to give the outputs that the
dense network has on its kept channels, from the inputs it now really gets: those of the
pruned network with the layers before it already corrected. No labels and no gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hwprune.capture import Program
from hwprune.progress import Advance
from hwprune.recover.layers import (
    Layer,
    batch_norm_after,
    layers_of,
    outputs_at,
    patches_at,
    positions,
)
from hwprune.recover.norms import (
    BATCH_NORM,
    DenseMoments,
    Kept,
    MomentRecorder,
    moments,
    set_statistics,
)
from hwprune.recover.solve import RIDGES, Equations, choose, solve
from hwprune.recover.sweep import as_batches, attribute, divided, sweep

MOMENT_VALUES = 1 << 16  # per channel: enough for a mean to half a per cent of its deviation


@dataclass(frozen=True)
class LayerError:
    """Squared error of a layer's kept outputs over their variance, on the images fitted to.

    `before` is with the weights it had, fed by the corrected network; `ridge` is what was
    chosen on held-back images, inf where the layer was best left alone.
    """

    name: str
    before: float
    after: float
    ridge: float


@dataclass(frozen=True)
class Reconstruction:
    """The corrected network and what each layer's fit achieved, in network order."""

    program: Program
    layers: tuple[LayerError, ...]


def reconstruct(
    dense: Program,
    pruned: Program,
    kept: Kept,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    norms: str = "match",
    samples: int = 8192,
    seed: int = 0,
    progress: Advance | None = None,
) -> Reconstruction:
    """Correct every layer of `pruned` so that it does what it did in `dense`.

    Args:
        dense: the original network; its node names are those of `pruned`.
        pruned: the smaller network; left as it is.
        kept: kept indices per parameter name and dimension (of the dense network).
        batches: images without labels, divided into ten or more where they may be. The last fifth
            of the batches chooses the ridge; of fewer than five the largest is taken.
        norms: batch-norm statistics, set in the same pass: "match" the dense network's moments
            channel by channel, "plain" re-estimation, or "keep".
        samples: output positions per layer; more are drawn where a layer has many inputs.
        seed: chooses the positions.
        progress: called with (layers done, layers in all).

    Memory: the live activations of the pruned network for all images, plus `samples` x kept
    channels x 4 bytes per layer.
    """
    cut = divided(as_batches(batches, pruned), pruned)
    fresh = replace(pruned, module=copy.deepcopy(pruned.module))
    fit = _Fit(dense, fresh, kept, samples, seed, len(cut))
    references = fit.record_dense(cut)
    if norms != "match":
        references = {}
    errors: list[LayerError] = []

    def before(node: fx.Node, fetch: Callable[[Any], list[Any]]) -> None:
        if node.target is BATCH_NORM and norms != "keep":
            _set_norm(fresh, node, fetch, references)
        layer = fit.layers.get(node.name)
        if layer is None:
            return
        errors.append(fit.correct(layer, fetch))
        if progress is not None:
            progress(len(errors), len(fit.layers))

    sweep(fresh.module, cut, before=before)
    return Reconstruction(fresh, tuple(errors))


def _set_norm(
    program: Program,
    node: fx.Node,
    fetch: Callable[[Any], list[Any]],
    references: dict[str, DenseMoments],
) -> None:
    seen = moments(fetch(node.args[0]), MOMENT_VALUES)
    set_statistics(program.module, node, seen, references.get(node.name))


class _Fit:
    """The layers to correct, and the dense network's outputs at the sampled positions."""

    def __init__(
        self, dense: Program, pruned: Program, kept: Kept, samples: int, seed: int, batches: int
    ) -> None:
        self.module, self.kept, self.seed, self.batches = pruned.module, kept, seed, batches
        self.samples, self.dense = samples, dense
        self.dense_layers = {layer.node.name: layer for layer in layers_of(dense.module.graph)}
        self.layers = {
            layer.node.name: layer
            for layer in layers_of(pruned.module.graph)
            if _alike(layer, self.dense_layers.get(layer.node.name))
        }
        self.order = {name: i for i, name in enumerate(self.layers)}
        self.targets: dict[str, list[tuple[np.ndarray, Tensor]]] = {n: [] for n in self.layers}

    def record_dense(self, batches: Sequence[tuple[Tensor, ...]]) -> dict[str, DenseMoments]:
        """Run the dense network batch by batch; keep its outputs at the sampled positions."""
        recorder = MomentRecorder(self.dense, self.kept, max(1, MOMENT_VALUES // len(batches)))
        for number, batch in enumerate(batches):
            current: dict[str, Any] = {}

            def before(
                node: fx.Node,
                fetch: Callable[[Any], list[Any]],
                shortcuts: dict[str, Any] = current,
            ) -> None:
                recorder.before(node, fetch)
                layer = self.dense_layers.get(node.name)
                if layer is not None and layer.shortcut is not None:
                    shortcuts[node.name] = fetch(layer.shortcut)[0]

            def after(
                node: fx.Node,
                values: list[Any],
                number: int = number,
                shortcuts: dict[str, Any] = current,
            ) -> None:
                layer = self.layers.get(node.name)
                if layer is not None:
                    shortcut = shortcuts.pop(node.name, None)
                    self.targets[node.name].append(self._target(layer, values[0], shortcut, number))

            sweep(self.dense.module, [batch], before=before, after=after)
        return recorder.references()

    def _target(
        self, layer: Layer, value: Tensor, shortcut: Tensor | None, number: int
    ) -> tuple[np.ndarray, Tensor]:
        """The positions sampled from a batch, and the dense outputs wanted there (kept only).

        Where a shortcut is added, that is what the *sum* lacks: `correct` takes away what the
        pruned network's shortcut gives.
        """
        weight = attribute(self.module, layer.node.args[1])
        assert weight is not None
        wanted = max(self.samples, 6 * weight[0].numel()) // self.batches + 1
        seed = self.seed + 100_003 * self.order[layer.node.name] + number
        at = positions(layer, tuple(value.shape), wanted, seed)
        outputs = outputs_at(layer, value, at)
        if shortcut is not None:
            dense_node = self.dense_layers[layer.node.name].node
            outputs = outputs + _unscaled(
                self.dense.module, dense_node, outputs_at(layer, shortcut, at)
            )
        channels = self.kept.get(layer.weight, {}).get(0)
        if channels is not None:
            outputs = outputs[:, torch.as_tensor(np.asarray(channels))]
        return at, outputs.clone()

    def correct(self, layer: Layer, fetch: Callable[[Any], list[Any]]) -> LayerError:
        """Fit one layer on the inputs it gets now, and change its parameters in place."""
        inputs = fetch(layer.node.args[0])
        if layer.shortcut is not None:
            self._subtract(layer, fetch(layer.shortcut))
        weight = attribute(self.module, layer.node.args[1])
        assert weight is not None
        bias = None if layer.bias is None else attribute(self.module, layer.node.args[2])
        intercept = layer.bias is not None or layer.absorb is not None
        held = len(inputs) // 5 if len(inputs) >= 5 else 0
        parts = [self._equations(layer, weight, inputs, intercept, slice(None, -held or None))]
        if held:
            tail = slice(len(inputs) - held, None)
            parts.append(self._equations(layer, weight, inputs, intercept, tail))
        self.targets[layer.node.name] = []
        current = _coefficients(layer, weight, bias, intercept)
        ridge = choose(parts[0], parts[1], current) if held else RIDGES[-1]
        whole = parts[0] + parts[1] if held else parts[0]
        before = whole.error(current)
        fitted = solve(whole, current, ridge)
        after = whole.error(fitted)
        if not after < before:
            return LayerError(layer.node.name, before, before, float("inf"))
        self._store(layer, weight, bias, fitted, intercept)
        return LayerError(layer.node.name, before, after, ridge)

    def _subtract(self, layer: Layer, shortcuts: list[Tensor]) -> None:
        self.targets[layer.node.name] = [
            (at, wanted - _unscaled(self.module, layer.node, outputs_at(layer, shortcut, at)))
            for (at, wanted), shortcut in zip(self.targets[layer.node.name], shortcuts, strict=True)
        ]

    def _equations(
        self, layer: Layer, weight: Tensor, inputs: list[Tensor], intercept: bool, part: slice
    ) -> Equations:
        total: Equations | None = None
        for value, (at, target) in zip(
            inputs[part], self.targets[layer.node.name][part], strict=True
        ):
            patches = patches_at(layer, value, weight, at)
            grouped = target.reshape(len(at), layer.groups, -1).transpose(0, 1)
            equations = Equations.of(patches, grouped, intercept)
            total = equations if total is None else total + equations
        assert total is not None
        return total

    def _store(
        self, layer: Layer, weight: Tensor, bias: Tensor | None, fitted: Tensor, intercept: bool
    ) -> None:
        taps = fitted.shape[1] - int(intercept)
        with torch.no_grad():
            weight.copy_(fitted[:, :taps].transpose(1, 2).reshape(weight.shape))
            if not intercept:
                return
            offset = fitted[:, taps].reshape(-1)
            if bias is not None:
                bias.copy_(offset)
            else:  # the batch norm that follows subtracts its mean
                mean = attribute(self.module, next(iter(layer.node.users)).args[3])
                assert mean is not None
                mean.sub_(offset)


def _alike(layer: Layer, dense: Layer | None) -> bool:
    if dense is None or layer.weight != dense.weight:
        return False
    return (layer.shortcut is None) == (dense.shortcut is None)


def _unscaled(module: fx.GraphModule, node: fx.Node, value: Tensor) -> Tensor:
    """What a layer must give so that its batch norm (if any) adds `value`, (samples, channels)."""
    norm = batch_norm_after(node)
    if norm is None:
        return value
    var = attribute(module, norm.args[4])
    assert var is not None
    scale = (var + float(norm.args[7])).rsqrt()  # type: ignore[arg-type]
    gamma = attribute(module, norm.args[1])
    if gamma is not None:
        scale = scale * gamma
    usable = scale.abs() > 1e-3 * scale.abs().max()
    return torch.where(usable, value / torch.where(usable, scale, 1.0), 0.0)


def _coefficients(layer: Layer, weight: Tensor, bias: Tensor | None, intercept: bool) -> Tensor:
    """Current parameters as (groups, inputs of a group x taps [+ 1], outputs of a group)."""
    per_group = weight.detach().double().reshape(layer.groups, -1, weight[0].numel())
    columns = per_group.transpose(1, 2)
    if not intercept:
        return columns
    outputs = columns.shape[2]
    row = torch.zeros(layer.groups, 1, outputs, dtype=torch.float64)
    if bias is not None:
        row = bias.detach().double().reshape(layer.groups, 1, outputs)
    return torch.cat([columns, row], 1)

"""Torch-Pruning on a trained network, and which channels it kept, so that all recover alike.

In: a `Subject` and a ratio of channels. Out: a `Candidate`. Global ranking; channels are rounded to
the vector width; of attention, whole heads go. What was kept is found by replaying the history of
the pruner on a copy of the network whose tensors hold their own indices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy_fit import Candidate, Kept, Timed, fit
from benchmarks.accuracy_subject import Subject, with_gradients
from examples.fashion_networks import Attention
from hwprune.capture import capture
from hwprune.errors import BudgetError, HwpruneError
from hwprune.turns import UNDER

NORM, TAYLOR, ISOMORPHIC = "torch-pruning-norm", "torch-pruning-taylor", "torch-pruning-isomorphic"
ISOMORPHIC_NORM = "torch-pruning-isomorphic-norm"
PEERS = (TAYLOR, NORM, ISOMORPHIC)
LABEL_FREE = (NORM, ISOMORPHIC_NORM)


def torch_pruning(subject: Subject, system: str, share: float) -> Timed:
    """Within a share of the dense latency; rounded more finely only where that comes nearer to it.

    Raises BudgetError where it cannot be met even without rounding.
    """
    found: list[Timed] = []
    failed: BudgetError | None = None
    for rounding in _roundings(subject.target.lanes):
        try:
            found.append(fit(_maker(subject, system, rounding), subject.time, share))
        except BudgetError as error:
            failed = error
        if found and found[-1].pair.ratio >= UNDER * share:
            break
    if not found:
        assert failed is not None
        raise failed
    return max(found, key=lambda timed: timed.pair.ratio)


def _roundings(lanes: int) -> list[int]:
    """The vector width, a quarter of it, and single channels."""
    return [lanes, max(2, lanes // 4), 1]


def _maker(subject: Subject, system: str, rounding: int) -> Callable[[float], Candidate]:
    def make(amount: float) -> Candidate:
        gradients = {} if system in LABEL_FREE else subject.gradients
        module = with_gradients(copy.deepcopy(subject.dense), gradients)
        network, image = subject.network, subject.example[0]
        pruned, kept = prune(module, image, system, 1.0 - amount, rounding, network.head)
        program = capture(pruned, subject.example, name=network.name)
        return Candidate(program, kept, rounding)

    return make


def prune(
    module: nn.Module, image: Tensor, system: str, ratio: float, rounding: int, head: str = "head"
) -> tuple[nn.Module, Kept]:
    """Prune a module in place to about a ratio fewer channels; and the indices that it kept.

    Its last layer, of name `head`, keeps its outputs. Criteria that need gradients find them on the
    parameters. Raises HwpruneError where Torch-Pruning fails, whatever it raises.
    """
    shadow = copy.deepcopy(module)
    try:
        history = _run(module, image, system, ratio, rounding, head)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise HwpruneError(f"Torch-Pruning failed: {reason}", where=system) from error
    module.zero_grad(set_to_none=True)
    return module, replayed(shadow, image, history)


def _run(
    module: nn.Module, image: Tensor, system: str, ratio: float, rounding: int, head: str
) -> Any:
    """Prune in place; the history of the pruner."""
    import torch_pruning

    norm = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    taylor = torch_pruning.importance.GroupTaylorImportance()
    attentions = [m for m in module.modules() if isinstance(m, Attention)]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        image,
        importance=norm if system in LABEL_FREE else taylor,
        global_pruning=True,
        isomorphic=system in (ISOMORPHIC, ISOMORPHIC_NORM),
        pruning_ratio=ratio,
        head_pruning_ratio=ratio,
        round_to=rounding,
        ignored_layers=[module.get_submodule(head)],
        num_heads={m.qkv: m.heads for m in attentions},
        prune_num_heads=bool(attentions),
        prune_head_dims=False,
        in_channel_groups={},
        out_channel_groups={},
        unwrapped_parameters=_unwrapped(module),
    )
    pruner.step()
    return pruner.pruning_history()


def replayed(shadow: nn.Module, image: Tensor, history: Any) -> Kept:
    """What a history of Torch-Pruning keeps of every tensor of an unpruned network.

    Indices by name and dimension, as `hwprune.rewrite.kept_indices` gives them.
    """
    import torch_pruning

    shadow.double()
    before = {name: tuple(t.shape) for name, t in _tensors(shadow)}
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(shadow, image.double(), unwrapped_parameters=_unwrapped(shadow))
    for _, tensor in _tensors(shadow):
        codes = torch.arange(tensor.numel(), dtype=torch.float64)  # exact below 2^53
        tensor.data.copy_(codes.view(tensor.shape))
    graph.load_pruning_history(history)
    return {name: _indices(t, before[name]) for name, t in _tensors(shadow) if t.ndim}


def _indices(codes: Tensor, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """The index along every dimension, from elements that hold their flat index in `shape`."""
    flat = codes.detach().numpy().astype(np.int64)
    found = {}
    for dim, size in enumerate(shape):
        line = flat[tuple(slice(None) if d == dim else 0 for d in range(flat.ndim))]
        found[dim] = line // int(np.prod(shape[dim + 1 :], dtype=np.int64)) % size
    return found


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return [(name, t) for name, t in named if t.is_floating_point()]


def _unwrapped(module: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Parameters that lie in no layer, and their dimension of channels: the last."""
    return [(parameter, parameter.ndim - 1) for parameter in module.parameters(recurse=False)]

"""Evidence from data, gathered once and streaming: memory does not grow with the batches.

In: a `Program`, its `Coupling` and batches, with or without labels. Out: `Gathered`. The network
runs in evaluation mode, node by node; what a layer reads is looked at (and, for gradients, made
a value of its own) where it reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from hwprune.branches import parts
from hwprune.coupling import Coupling, Group
from hwprune.errors import HwpruneError
from hwprune.program import Program, get_tensor
from hwprune.progress import Advance
from hwprune.score.criterion import COVARIANCES, GRADIENTS, RANKS, SAMPLES
from hwprune.score.evidence import Batch, Gathered, GradientSums, Loss, Read, Seen
from hwprune.score.reads import find_reads
from hwprune.score.statistics import add_patches, add_ranks, add_values

Probe = tuple[fx.Node, bool]


def gather(
    program: Program,
    coupling: Coupling,
    owners: Sequence[Group],
    needs: str,
    batches: Sequence[Batch],
    loss: Loss | None,
    seed: int,
    advance: Advance,
) -> Gathered:
    """What the batches show of the kind that `needs` names (`criterion.ACTIVATIONS`, …).

    `owners` are the groups whose weights' gradients are summed. Without a `loss` labels are not
    looked at, and gradients are of `projection`. For single samples a program with a fixed batch
    gives the gradients of its whole batches.
    """
    found = Gathered(find_reads(program, coupling))
    gradients = needs in (GRADIENTS, SAMPLES)
    generator = torch.Generator().manual_seed(seed)
    with _trainable(program.module) if gradients else torch.no_grad():
        for done, (inputs, labels) in enumerate(batches):
            if not gradients:
                _Looking(program, coupling, found, needs, seed + done).run(*inputs)
                found.batches += 1
            singles = _singles if needs == SAMPLES and program.dynamic_batch else _whole
            for some, their in singles(inputs, labels) if gradients else ():
                outputs = (probe := _Probing(program, found.reads)).run(*some)
                if loss is None:
                    value = projection(outputs, generator)
                else:
                    value = loss_of(loss, outputs, their, f"batch {done}")
                _add_gradients(program, owners, found, probe.probes, value)
            advance(done + 1, len(batches))
    if gradients and not found.gradients:
        raise HwpruneError("no batch gave a gradient", hint="check the loader and the loss")
    return found


def loss_of(loss: Loss, outputs: Any, labels: Any, where: str) -> Tensor:
    """The loss of a batch. Raises HwpruneError where it fails, is no number or not finite."""
    try:
        value = loss(outputs, labels)
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise HwpruneError(
            f"the loss fails: {text or type(error).__name__}", where=where,
            hint="check that the labels fit the outputs",
        ) from error  # fmt: skip
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise HwpruneError("the loss is no single number", where=where, hint="take its mean")
    if not bool(value.isfinite()):
        raise HwpruneError(f"the loss is {float(value)}", where=where, hint="check the batch")
    return value


def projection(outputs: Any, generator: torch.Generator) -> Tensor:
    """A random projection of all outputs, each scaled to length one over the batch.

    With random signs r, the expectation of (d sum(r y) / d x)^2 is |dy / dx|^2.
    """
    total = torch.zeros(())
    for y in tree_leaves(outputs):
        if isinstance(y, Tensor) and y.is_floating_point() and y.requires_grad:
            signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
            total = total + (signs * y).sum() / y.detach().norm().clamp_min(1e-30)
    return total


@contextmanager
def _trainable(module: nn.Module) -> Iterator[None]:
    """Every floating-point parameter takes part in gradients, whatever its owner has said."""
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _whole(inputs: Sequence[Tensor], labels: Any) -> Iterable[Batch]:
    return [(inputs, labels)]


def _singles(inputs: Sequence[Tensor], labels: Any) -> Iterable[Batch]:
    """The samples of a batch one by one, each still a batch."""

    def cut(i: int) -> Callable[[Any], Any]:
        return lambda x: x[i : i + 1] if isinstance(x, Tensor) and x.ndim else x

    for i in range(len(inputs[0])):
        yield [x[i : i + 1] for x in inputs], tree_map(cut(i), labels)


def _add_gradients(
    program: Program,
    owners: Sequence[Group],
    found: Gathered,
    probes: Mapping[Probe, Tensor],
    value: Tensor,
) -> None:
    """Add a batch's gradients of the loss, of weights by site and of units where they are read."""
    if not value.requires_grad:
        return
    named = program.module.named_parameters(remove_duplicate=False)
    parameters = {n: p for n, p in named if p.is_floating_point()}
    wanted = [*parameters.values(), *probes.values()]
    gradients = torch.autograd.grad(value, wanted, allow_unused=True)
    products = {
        name: (g * p.detach()).double()
        for (name, p), g in zip(parameters.items(), gradients, strict=False)
        if g is not None
    }
    read = {
        place: g * x.detach()
        for (place, x), g in zip(probes.items(), gradients[len(parameters) :], strict=True)
        if g is not None
    }
    found.batches += 1
    _add_products(owners, found, products)
    for group, reads in found.reads.items():
        places = [(r, (r.layer.node, r.output)) for r in reads]
        sums = [_along(read[place], r) for r, place in places if place in read]
        if sums:
            derivative = torch.stack(sums).sum(0).square().cpu().numpy()
            found.fisher[group] = found.fisher.get(group, 0.0) + derivative


def _along(product: Tensor, read: Read) -> Tensor:
    """Sums of a value by unit: (width,) float64."""
    channels = product.double().movedim(read.dim, 0).flatten(1).sum(1)
    return channels[torch.from_numpy(read.index)].sum(1)


def _add_products(owners: Sequence[Group], found: Gathered, products: Mapping[str, Tensor]) -> None:
    for group in owners:
        for site, index in group.index.items():
            if site.parameter not in products:
                continue
            product = products[site.parameter].movedim(site.dim, 0)
            rows = product.reshape(len(product), -1)
            sums = found.gradients.setdefault((group.name, site), GradientSums())
            units = torch.from_numpy(index)
            sums.square_of_sum += rows.sum(1)[units].sum(1).square().cpu().numpy()
            sums.sum_of_absolutes += rows.abs().sum(1)[units].sum(1).cpu().numpy()
            sums.sum_of_squares += rows.square().sum(1)[units].sum(1).cpu().numpy()


class _Probing(fx.Interpreter):
    """Runs a graph; what layers read of a group becomes a value whose gradient can be asked for.

    `probes` maps (layer's node, whether its output is meant) to these values.
    """

    def __init__(self, program: Program, reads: Mapping[str, Sequence[Read]]) -> None:
        super().__init__(program.module)
        self.wanted = {(r.layer.node, r.output) for some in reads.values() for r in some}
        self.probes: dict[Probe, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if (n, False) in self.wanted:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            result = self.call_function(
                n.target, (self._probe(n, False, args[0]), *args[1:]), kwargs
            )
        else:
            result = super().run_node(n)
        # In-place operators may change the copy, and not the probe.
        return self._probe(n, True, result).clone() if (n, True) in self.wanted else result

    def _probe(self, node: fx.Node, output: bool, value: Tensor) -> Tensor:
        probe = value.clone() if value.requires_grad else value.clone().requires_grad_()
        self.probes[node, output] = probe
        return probe


class _Looking(fx.Interpreter):
    """Runs a graph and adds what it sees to statistics."""

    def __init__(
        self, program: Program, coupling: Coupling, found: Gathered, needs: str, seed: int
    ) -> None:
        super().__init__(program.module)
        self.found, self.needs, self.seed = found, needs, seed
        self.places: dict[str, list[Read]] = {}
        for reads in found.reads.values():
            for read in reads:
                node: Any = read.layer.node if read.output else read.layer.node.args[0]
                self.places.setdefault(node.name, []).append(read)
        self.adds = {b.add: b for b in coupling.branches}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.name in self.adds:
            branch = self.adds[n.name]
            _, added = parts(branch, n, self.fetch_args_kwargs_from_env(n)[0])
            part = added.double().square().mean()
        result = super().run_node(n)
        if n.name in self.adds:
            share = float(part / result.double().square().mean().clamp_min(1e-300))
            self.found.branches[branch.name] = self.found.branches.get(branch.name, 0.0) + share
        for read in self.places.get(n.name, ()):
            seen = self.found.seen.setdefault(read, Seen())
            add_values(seen, read, result)
            if self.needs == RANKS:
                add_ranks(seen, read, result)
            if self.needs == COVARIANCES and not (read.output or read.passes):
                weight = get_tensor(self.module, read.layer.weight)
                add_patches(seen, read, result, weight, self.seed)
        return result

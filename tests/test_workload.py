import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hwprune.capture import capture, fingerprint, specialize
from hwprune.couple import couple
from hwprune.coupling import Coupling, Extent, Group, Site
from hwprune.errors import LoweringError
from hwprune.lower import fold_batch_norm, fuse
from hwprune.lower.spec import Call, TensorSpec, Workload
from hwprune.reshape import reshape_workload
from hwprune.target import load_target
from hwprune.workload import Site as KernelSite
from hwprune.workload import sites, width_candidates

V4 = load_target("x86-64-v4")


class Net(nn.Module):
    """A residual block, a concatenation, a depthwise convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.expand = nn.Conv2d(32, 96, 1)
        self.depthwise = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.project = nn.Conv2d(96, 32, 1)
        self.left = nn.Conv2d(32, 16, 1)
        self.right = nn.Conv2d(32, 48, 1)
        self.mix = nn.Conv2d(64, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.project(self.depthwise(self.expand(x).relu()).relu())
        x = torch.cat([self.left(x), self.right(x).relu()], 1)
        x = self.mix(x).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> tuple[tuple[KernelSite, ...], Coupling]:
    torch.manual_seed(0)
    program = capture(Net().eval(), (torch.randn(1, 3, 8, 8),))
    coupling = couple(program)
    folded = fold_batch_norm(specialize(program))
    return sites(fuse(folded), coupling, folded), coupling


def full(coupling: Coupling) -> dict[str, int]:
    return {group.name: group.width for group in coupling.groups}


def test_full_width_gives_the_captured_kernels(
    network: tuple[tuple[KernelSite, ...], Coupling],
) -> None:
    found, coupling = network
    assert not any(site.dense for site in found)
    for site in found:
        assert site.workload(full(coupling)) == site.call.workload


def test_pruned_widths_give_the_kernels_of_the_pruned_network(
    network: tuple[tuple[KernelSite, ...], Coupling],
) -> None:
    """The sites' workloads are those that lowering the really smaller network yields."""
    from hwprune.plan import Plan
    from hwprune.rewrite import rewrite

    torch.manual_seed(0)
    program = capture(Net().eval(), (torch.randn(1, 3, 8, 8),))
    coupling = couple(program)
    found, _ = network
    rng = np.random.default_rng(0)
    kept = {
        g.name: tuple(sorted(map(int, rng.permutation(g.width)[: g.width * 3 // 4])))
        for g in coupling.groups
    }
    plan = Plan(fingerprint(program), kept)
    smaller = fuse(fold_batch_norm(specialize(rewrite(program, coupling, plan))))
    expected = [call.workload for call in smaller]
    assert [site.workload(plan.widths()) for site in found] == expected


def test_sizes_that_move_together_are_one_axis(
    network: tuple[tuple[KernelSite, ...], Coupling],
) -> None:
    found, _ = network
    axes = {site.call.params[0] if site.call.params else "cat": len(site.axes) for site in found}
    assert axes["depthwise.weight"] == 1
    assert axes["expand.weight"] == 2
    assert axes["stem.weight"] == 1
    assert axes["head.weight"] == 1
    assert axes["cat"] == 1


def test_sampling_the_axes_equals_choosing_the_widths(
    network: tuple[tuple[KernelSite, ...], Coupling],
) -> None:
    found, coupling = network
    widths = {name: width // 2 for name, width in full(coupling).items()}
    for site in found:
        point = [axis.at(widths) for axis in site.axes]
        assert site.sample(point) == site.workload(widths)


def test_parts_of_a_concatenation_add_up(
    network: tuple[tuple[KernelSite, ...], Coupling],
) -> None:
    (cat,) = [s for s in network[0] if s.call.workload.op == "concat"]
    for total in (2, 17, 33, 50, 64):
        sampled = cat.sample([total])
        assert sum(spec.shape[1] for spec in sampled.inputs) == sampled.output.shape[1] == total


def test_unknown_values_are_priced_dense() -> None:
    shape = TensorSpec((1, 32))
    work = Workload("linear", (shape,), shape, (TensorSpec((32, 32)),))
    call = Call("call", work, ("ghost",), ("nothing",), "ghost_2", ("ghost_2",))

    class Empty:
        groups: tuple[Group, ...] = ()

        def extent(self, node: str, dim: int) -> Extent:
            raise KeyError(node)

        def parameter_extents(self, name: str) -> tuple[Extent, ...]:
            raise KeyError(name)

        def branch_of(self, node_name: str) -> str:
            return ""

        branch_of_parameter = branch_of

    program = capture(nn.Linear(32, 32), (torch.randn(1, 32),))
    (site,) = sites([call], Empty(), program)
    assert site.dense
    assert site.axes == ()
    assert site.workload({"g": 3}) == work == site.sample([])


def group(width: int, channels: int = 1) -> Group:
    return Group("g", width, {Site("w", 0): np.arange(width * channels).reshape(width, channels)})


@given(st.integers(1, 5000), st.sampled_from([1, 2, 4, 6, 8, 16]))
def test_candidates_are_ascending_aligned_and_complete(width: int, channels: int) -> None:
    found = width_candidates(group(width, channels), None, V4)  # type: ignore[arg-type]
    assert list(found) == sorted(set(found))
    assert found[0] >= 1
    assert found[-1] == width
    assert len(found) <= 40
    aligned = V4.channel_alignment // np.gcd(V4.channel_alignment, channels)
    assert all(w % max(1, aligned // 2) == 0 for w in found[:-1])


def test_candidates_of_usual_widths() -> None:
    def candidates(width: int) -> tuple[int, ...]:
        return width_candidates(group(width), None, V4)  # type: ignore[arg-type]

    assert candidates(5) == (5,)
    assert candidates(24) == (8, 16, 24)
    assert candidates(40) == (8, 16, 24, 32, 40)
    assert candidates(144) == (16, 32, 48, 64, 80, 96, 112, 128, 144)
    assert len(candidates(2048)) <= 26
    assert candidates(2048)[0] == 16


def test_slices_keep_their_place() -> None:
    x = TensorSpec((1, 116, 4, 4), layout="packed")
    half = TensorSpec((1, 58, 4, 4), layout="packed")
    work = Workload(
        "slice", (x,), half, attrs=(("axis", 1), ("start", 58), ("step", 1), ("stop", 116))
    )
    smaller = reshape_workload(work, [(1, 64, 4, 4)], (1, 32, 4, 4), [])
    assert (smaller.attr("start"), smaller.attr("stop")) == (32, 64)
    with pytest.raises(LoweringError, match="does not fit"):
        reshape_workload(work, [(1, 16, 4, 4)], (1, 32, 4, 4), [])


def test_sizes_in_aten_arguments() -> None:
    def work(target: str, args: str) -> Workload:
        return Workload(
            "aten",
            (TensorSpec((1, 32, 2)),),
            TensorSpec((1, 64)),
            attrs=(("args", args), ("target", target)),
        )

    view = work("aten.view.default", '{"args": [{"input": 0}, [1, 64]], "kwargs": {}}')
    smaller = reshape_workload(view, [(1, 16, 2)], (1, 32), [])
    assert "[1, 32]" in smaller.attr("args")
    other = work("aten.thing.default", '{"args": [{"input": 0}, 64], "kwargs": {}}')
    with pytest.raises(LoweringError, match=r"aten\.thing"):
        reshape_workload(other, [(1, 16, 2)], (1, 32), [])
    free = work("aten.thing.default", '{"args": [{"input": 0}, 7], "kwargs": {}}')
    assert reshape_workload(free, [(1, 16, 2)], (1, 32), []).output.shape == (1, 32)


@pytest.mark.parametrize("kind", ["half", "computed"])
def test_fallbacks_and_computed_weights_follow_both_widths(kind: str) -> None:
    norm = torch.nn.utils.parametrizations.weight_norm
    layers = [nn.Conv2d(3, 32, 1), nn.Conv2d(32, 48, 3), nn.Conv2d(48, 5, 1)]
    model = nn.Sequential(*(layers if kind == "half" else map(norm, layers))).eval()
    x = torch.randn(1, 3, 8, 8)
    if kind == "half":
        model, x = model.half(), x.half()
    program = capture(model, (x,))
    coupling = couple(program)
    folded = fold_batch_norm(specialize(program))
    first, second = (g.name for g in coupling.groups)
    found = sites(fuse(folded), coupling, folded)
    convs = [s for s in found if len(s.call.workload.params) and s.axes]
    shapes = [s.workload({first: 16, second: 24}).params[0].shape for s in convs]
    assert shapes == [(16, 3, 1, 1), (24, 16, 3, 3), (5, 24, 1, 1)]

"""Properties of random networks, and the networks that once broke them."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import prune
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hwprune.capture import capture
from hwprune.couple import couple
from hwprune.coupling import Site
from tests import random_statistics  # noqa: F401 - its blocks
from tests.network_properties import check_network
from tests.random_blocks import BLOCKS, head, stem
from tests.random_networks import Builder, Choices, Network, random_network, seeded


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Random networks; simpler ones are those with smaller choices."""
    return random_network(Choices(lambda n: draw(st.integers(0, n - 1))))


def examples(count: int) -> settings:
    """The same networks in every run, each as long as it takes."""
    ignored = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(
        max_examples=count, derandomize=True, deadline=None, suppress_health_check=ignored
    )


@examples(40)
@given(network=networks())
def test_random_networks(network: Network) -> None:
    check_network(network.program)


@pytest.mark.slow
@examples(1960)
@given(network=networks(), seed=st.integers(0, 99))
def test_many_random_networks(network: Network, seed: int) -> None:
    check_network(network.program, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_networks_through_export(seed: int) -> None:
    """With a batch that is not fixed; coupled like the graph that was built with it fixed."""
    network = seeded(seed)
    program = capture(network.module, network.inputs)
    found, wanted = couple(program), couple(network.program)
    assert [(g.name, g.width, g.sites) for g in found.groups] == [
        (g.name, g.width, g.sites) for g in wanted.groups
    ]
    check_network(program, seed)


def test_most_random_networks_can_be_pruned_and_pruned_again() -> None:
    facts = [check_network(seeded(seed).program, seed) for seed in range(30)]
    prunable = [f for f in facts if f.groups]
    assert len(prunable) > 15
    assert sum(f.twice for f in prunable) > 0.9 * len(prunable)


@pytest.mark.parametrize(
    ("ndim", "number"), [(n, i) for n, blocks in BLOCKS.items() for i in range(len(blocks))]
)
def test_every_block_alone(ndim: int, number: int) -> None:
    """Between two layers, with each of its first few choices."""
    for choice in range(3):
        build = Builder(Choices(lambda n, c=choice: min(c, n - 1)))
        shape = {4: (3, 4, 4), 3: (4, 6), 2: (6,)}[ndim]

        build.pool = [stem(build, build.input(*shape))]
        made = BLOCKS[ndim][number](build, build.pool[0])
        check_network(build.finish([head(build, made)]).program)


# What random networks have found


def test_indices_into_a_value_without_channels_to_prune_are_kept():
    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("places", torch.tensor([0, 2, 1, 1, 0, 2]))
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(self.first(x.index_select(1, self.places)))

    _, coupling, _, smaller, certificate = prune(Picked(), (torch.randn(2, 4),))
    certificate.check()
    assert [g.name for g in coupling.groups] == ["first"]
    assert smaller.module.get_buffer("places").tolist() == [0, 2, 1, 1, 0, 2]


def test_two_branches_channels_in_one_dimension():
    """All products of two layers' channels in one dimension: one of the two can be pruned."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(5, 6), nn.Linear(24, 3)

        def forward(self, x):
            return self.c((self.a(x).unsqueeze(2) * self.b(x).unsqueeze(1)).flatten(1))

    _, coupling, *_, certificate = prune(Outer(), (torch.randn(2, 5),))
    certificate.check()
    assert [g.name for g in coupling.groups] == ["b"]
    frozen = next(f for f in coupling.frozen if f.name == "a" and f.width == 4)
    assert "merged with other channels" in frozen.reason


def test_a_shuffle_of_channels_that_stay_passes_other_dimensions():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(torch.channel_shuffle(self.a(x), 3))

    _, coupling, *_, certificate = prune(Mixed(), (torch.randn(2, 6, 5, 5),))
    certificate.check()
    assert [g.width for g in coupling.groups] == [4]


def test_keeping_all_of_a_strided_slice_leaves_the_graph_alone():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x)[:, 1::3])

    check_network(capture(Strided(), (torch.randn(2, 5),)))


@pytest.mark.parametrize("channels", [8, 16])
def test_a_piece_of_shuffled_pixels_is_never_empty(channels: int):
    """Each pixel-shuffled channel is one unit; a piece that is one unit whole must stay."""

    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, channels, 1), nn.Conv2d(channels // 4, 3, 1)

        def forward(self, x):
            first, second = torch.pixel_shuffle(self.a(x), 2).chunk(2, dim=1)
            return self.b(torch.cat([second, first], dim=1))

    program = capture(Pieces(), (torch.randn(2, 3, 4, 4),))
    coupling = couple(program)
    assert [g.width for g in coupling.groups] == ([] if channels == 8 else [2, 2])
    if channels == 8:
        reasons = [f.reason for f in coupling.frozen if Site("a.weight", 0) in f.sites]
        assert reasons == ["aten.chunk.default: a dimension would be left empty"] * 2
    check_network(program)

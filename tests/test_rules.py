"""Each rule of the labels, on the smallest network that needs it: prunable, and certified."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from graph_helpers import prune
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hwprune.couple import Site


class Between(nn.Module):
    """Convolution, something in between, convolution."""

    def __init__(self, middle, mid=12, out=12, **options):
        super().__init__()
        self.first = nn.Conv2d(3, mid, 3, padding=1)
        self.middle = middle
        self.second = nn.Conv2d(out, 5, 3, padding=1)

    def forward(self, x):
        return self.second(self.middle(self.first(x)))


class Func(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised row by row, as in networks without norms."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, padding=1, **options)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.3))

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 1.7).view(-1)
        rows = F.batch_norm(rows, None, None, gain, training=True, momentum=0.0)
        weight = rows.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=1, groups=self.groups)


class ResponseNorm(nn.Module):
    """The norm over space of a channel, relative to the mean of all channels'."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x):
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x + self.gain * x * size / (size.mean(1, keepdim=True) + 1e-6)


class Picked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.arange(14) % 9)

    def forward(self, x):
        return x.index_select(1, self.places)


class Listed(Picked):
    def forward(self, x):
        return x[:, self.places]


def shuffle(x, groups=3):
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def chunk_swap(x):
    a, b, c = x.chunk(3, 1)
    return torch.cat([c, a * 2, b], 1)


def padded(x):
    return F.pad(x, (0, 0, 0, 0, 2, 3))


def unfolded(x):
    return x.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))


def im2col(x):
    columns = F.unfold(x, 3, padding=1)
    return columns.reshape(x.shape[0], 9 * x.shape[1], *x.shape[2:])


def col2im(x):
    columns = x.reshape(x.shape[0], x.shape[1], -1)
    return F.fold(columns, (16, 16), 2, stride=2)


def picked_rows(x):
    return x[:, :, torch.tensor([[0, 2], [4, 4]]), torch.tensor([1, 3])]


def in_place(x):
    y = x[:, :4]
    y.mul_(2.0)
    return x.add_(1.0).relu_()


FREE = {
    "relu": (nn.ReLU(inplace=True), 12, 12),
    "prelu": (nn.PReLU(12), 12, 12),
    "prelu_shared": (nn.PReLU(), 12, 12),
    "batch_norm": (nn.BatchNorm2d(12), 12, 12),
    "instance_norm": (nn.InstanceNorm2d(12, affine=True), 12, 12),
    "group_norm": (nn.GroupNorm(3, 12), 12, 12),
    "group_norm_whole": (nn.GroupNorm(6, 12, affine=False), 12, 12),
    "group_norm_of_one": (nn.GroupNorm(1, 12), 12, 12),
    "max_pool": (nn.MaxPool2d(2), 12, 12),
    "adaptive": (nn.AdaptiveMaxPool2d(3), 12, 12),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), 12, 12),
    "reflect": (nn.ReflectionPad2d(1), 12, 12),
    "depthwise": (nn.Conv2d(12, 24, 3, groups=12), 12, 24),
    "grouped": (nn.Conv2d(12, 24, 1, groups=4), 12, 24),
    "transposed": (nn.ConvTranspose2d(12, 7, 2, stride=2), 12, 7),
    "transposed_depthwise": (nn.ConvTranspose2d(12, 12, 2, groups=12), 12, 12),
    "pixel_shuffle": (nn.PixelShuffle(2), 12, 3),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), 12, 48),
    "channel_shuffle": (nn.ChannelShuffle(3), 12, 12),
    "view_shuffle": (Func(shuffle), 12, 12),
    "slice_even": (Func(lambda x: x[:, ::2]), 12, 6),
    "slice_tail": (Func(lambda x: x[:, 5:]), 12, 7),
    "chunk_cat": (Func(chunk_swap), 12, 12),
    "split": (Func(lambda x: torch.cat(x.split([2, 7, 3], 1)[::-1], 1)), 12, 12),
    "narrow": (Func(lambda x: x.narrow(1, 2, 6)), 12, 6),
    "flip": (Func(lambda x: x.flip(1)), 12, 12),
    "repeat": (Func(lambda x: x.repeat(1, 2, 1, 1)), 12, 24),
    "repeat_interleave": (Func(lambda x: x.repeat_interleave(2, 1)), 12, 24),
    "index_select": (Picked(), 12, 14),
    "index_listed": (Listed(), 12, 14),
    "weight_norm": (weight_norm(nn.Conv2d(12, 10, 3, padding=1)), 12, 10),
    "weight_norm_transposed": (weight_norm(nn.ConvTranspose2d(12, 10, 1), dim=1), 12, 10),
    "pad_channels": (Func(padded), 12, 17),
    "glu": (nn.GLU(1), 12, 6),
    "stack_sum": (Func(lambda x: torch.stack([x, x * 2], 2).sum(2)), 12, 12),
    "unflatten": (Func(lambda x: x.unflatten(1, (4, 3)).amax(2)), 12, 4),
    "zeros": (Func(lambda x: torch.cat([x, x.new_zeros(x.shape[0], 2, *x.shape[2:])], 1)), 12, 14),
    "gate": (Func(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()), 12, 12),
    "where": (Func(lambda x: torch.where(x > 0, x, 0.1 * x)), 12, 12),
    "in_place": (Func(in_place), 12, 12),
    "select_channel": (Func(lambda x: x[:, 1:] + x[:, 0].unsqueeze(1)), 12, 11),
    "unfold": (Func(unfolded), 12, 12),
    "im2col": (Func(im2col), 4, 36),
    "col2im": (Func(col2im), 12, 3),
    "index_space": (Func(picked_rows), 12, 12),
    "channel_mean": (Func(lambda x: x - x.mean(1, keepdim=True)), 12, 12),
    "response_norm": (ResponseNorm(12), 12, 12),
    "standardised": (Standardised(12, 10, 3), 12, 10),
    "standardised_groups": (Standardised(12, 24, 3, groups=4), 12, 24),
    "permuted": (Func(lambda x: x.permute(0, 2, 3, 1).contiguous().movedim(-1, 1)), 12, 12),
}

FROZEN = {
    "softmax": (nn.Softmax(1), 12, 12),
    "layer_norm": (nn.LayerNorm([12, 8, 8]), 12, 12),
    "roll": (Func(lambda x: x.roll(1, 1)), 12, 12),
    "index_channels": (Func(lambda x: x[:, torch.arange(12).flip(0)]), 12, 12),
    "sort": (Func(lambda x: x.sort(1)[0]), 12, 12),
    "channel_median": (Func(lambda x: x - x.median(1, keepdim=True)[0]), 12, 12),
    "one_constant": (Func(lambda x: x + torch.arange(12.0).reshape(12, 1, 1)), 12, 12),
    "gram": (Func(lambda x: torch.einsum("bchw,bdhw->bcd", x, x).unsqueeze(-1)), 12, 12),
}


@pytest.mark.parametrize("name", FREE)
def test_middle_keeps_both_convolutions_prunable(name):
    middle, mid, out = FREE[name]
    _, coupling, plan, smaller, certificate = prune(
        Between(middle, mid, out).eval(), (torch.randn(2, 3, 8, 8),), keep=0.5
    )
    certificate.check()
    first = coupling.parameter_extents("first.weight")
    assert first[0].terms, "the first convolution's outputs are frozen"
    assert coupling.parameter_extents("second.weight")[1].terms
    assert first[0].at(plan.widths()) == smaller.module.get_parameter("first.weight").shape[0] < mid
    more = torch.randn(3, 3, 8, 8)
    assert smaller.module(more).shape[:2] == (3, 5)


@pytest.mark.parametrize("name", FROZEN)
def test_middle_freezes_and_says_why(name):
    middle, mid, out = FROZEN[name]
    program, coupling, _, smaller, certificate = prune(
        Between(middle, mid, out).eval(), (torch.randn(2, 3, 8, 8),), keep=0.5
    )
    certificate.check()
    assert coupling.groups == ()
    frozen = [f for f in coupling.frozen if Site("first.weight", 0) in f.sites]
    assert frozen
    assert all(f.reason and f.node for f in frozen)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(smaller.module(x), program.module(x))


def test_unknown_operator_is_named_with_the_users_line():
    _, coupling, *_ = prune(
        Between(Func(lambda x: x.sort(1)[0])).eval(), (torch.randn(2, 3, 8, 8),)
    )
    frozen = next(f for f in coupling.frozen if Site("first.weight", 0) in f.sites)
    assert frozen.reason == "aten.sort.default: no rule for this operator"
    assert "test_rules.py" in frozen.source


def test_residual_and_output_and_input():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.a = nn.Conv2d(8, 6, 3, padding=1)
            self.b = nn.Conv2d(6, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x + self.b(self.a(x).relu())).mean((2, 3)))

    _, coupling, *_, certificate = prune(Residual(), (torch.randn(1, 3, 6, 6),))
    certificate.check()
    stem, inner = coupling.group("stem"), coupling.group("a")
    assert set(stem.sites) == {
        Site("stem.weight", 0),
        Site("stem.bias", 0),
        Site("a.weight", 1),
        Site("b.weight", 0),
        Site("b.bias", 0),
        Site("head.weight", 1),
    }
    assert inner.width == 6
    reasons = {f.name: f.reason for f in coupling.frozen}
    assert reasons["head"] == "is an output of the model"
    assert "cannot be removed" in reasons["stem"]


def test_flatten_gives_every_channel_its_run_of_inputs():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 49, 10))
    _, coupling, *_, certificate = prune(net, (torch.randn(1, 3, 9, 9),))
    certificate.check()
    index = coupling.group("0").index[Site("2.weight", 1)]
    assert np.array_equal(index, np.arange(4 * 49).reshape(4, 49))
    assert coupling.parameter_extents("2.weight")[1].terms == (("0", 49),)


def test_grouped_convolution_drops_whole_groups_or_offsets():
    class Grouped(nn.Module):
        def __init__(self, shuffled):
            super().__init__()
            self.a = nn.Conv2d(3, 16, 1)
            self.b = nn.Conv2d(16, 16, 3, groups=4, bias=False)
            self.c = nn.Conv2d(16, 16, 1, groups=4 if shuffled else 1)
            self.d = nn.Conv2d(16, 2, 1)
            self.shuffled = shuffled

        def forward(self, x):
            x = self.b(self.a(x)).relu()
            return self.d(self.c(shuffle(x, 4) if self.shuffled else x))

    for shuffled in (False, True):
        _, coupling, _, smaller, certificate = prune(
            Grouped(shuffled), (torch.randn(1, 3, 6, 6),), keep=0.5
        )
        certificate.check()
        assert sum(g.width for g in coupling.groups) > 6
        conv = next(n for n in smaller.module.graph.nodes if n.name == "conv2d_1")
        weight = smaller.module.get_parameter("b.weight")
        assert conv.args[6] * weight.shape[1] == smaller.module.get_parameter("a.weight").shape[0]
        assert weight.shape[0] < 16


def test_resnext_like_groups_go_whole():
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, groups=16), nn.Conv2d(64, 4, 1))
    _, coupling, _, smaller, certificate = prune(net, (torch.randn(1, 3, 6, 6),), keep=0.25)
    certificate.check()
    assert [g.width for g in coupling.groups] == [16]
    assert coupling.group("0").index[Site("1.weight", 0)].shape == (16, 4)
    assert tuple(smaller.module.get_parameter("1.weight").shape) == (16, 4, 3, 3)


def test_a_module_called_twice_and_tied_weights():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(6, 10)
            self.mix = nn.Linear(10, 10)
            self.tied = nn.Linear(10, 10)
            self.tied.weight = self.mix.weight
            self.down = nn.Linear(10, 3)

        def forward(self, x):
            x = self.mix(self.mix(self.up(x)).relu()).relu()
            return self.down(self.tied(x))

    _, coupling, _, smaller, certificate = prune(Twice(), (torch.randn(2, 6),))
    certificate.check()
    (group,) = coupling.groups
    assert group.width == 10
    square = [p for p in smaller.module.parameters() if tuple(p.shape) == (5, 5)]
    assert len(square) == 1, "the tied weight is one parameter"


def test_several_inputs_and_outputs():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, padding=1)
            self.b = nn.Conv2d(2, 8, 3, padding=1)
            self.c = nn.Conv2d(8, 6, 1)
            self.d = nn.Linear(6, 2)

        def forward(self, x, y):
            shared = self.a(x) + self.b(y)
            hidden = self.c(shared).relu()
            return {"image": shared, "class": (self.d(hidden.mean((2, 3))), hidden.shape[1])}

    program, coupling, _, smaller, certificate = prune(
        Many(), (torch.randn(1, 3, 5, 5), torch.randn(1, 2, 5, 5))
    )
    certificate.check()
    assert [g.name for g in coupling.groups] == ["c"]
    outputs = smaller.module(torch.randn(4, 3, 5, 5), torch.randn(4, 2, 5, 5))
    assert outputs["image"].shape == (4, 8, 5, 5)
    assert program.dynamic_batch


def test_batch_merged_with_channels_is_frozen():
    net = Func(lambda x: x.reshape(x.shape[0] * 4, 3, -1).roll(1, 0).reshape(x.shape[0], 12, 8, 8))
    _, coupling, *_, certificate = prune(Between(net), (torch.randn(2, 3, 8, 8),))
    certificate.check()
    assert any("merged with the batch" in f.reason for f in coupling.frozen)


def test_embedding_columns_and_row_by_column_products():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 8)
            self.weight = nn.Parameter(torch.randn(8, 6))
            self.bias = nn.Parameter(torch.randn(6))
            self.out = nn.Parameter(torch.randn(6, 3))

        def forward(self, tokens):
            x = (self.table(tokens) @ self.weight + self.bias).relu()
            return torch.addmm(self.out[0], x.mean(1), self.out)

    _, coupling, _, smaller, certificate = prune(Words(), (torch.randint(0, 20, (2, 5)),))
    certificate.check()
    assert coupling.group("table").width == 8
    assert tuple(smaller.module.get_parameter("table.weight").shape) == (20, 4)


def test_a_group_norm_loses_whole_groups_or_as_many_channels_of_each():
    for groups, width, through in ((2, 6, True), (6, 6, False), (4, 4, False), (1, 12, True)):
        net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(groups, 12), nn.Conv2d(12, 2, 1))
        _, coupling, _, smaller, certificate = prune(net, (torch.randn(2, 3, 6, 6),), keep=0.5)
        certificate.check()
        (group,) = coupling.groups
        assert group.width == width
        assert group.through_norm_statistics == through
        (norm,) = (n for n in smaller.module.graph.nodes if "group_norm" in str(n.target))
        assert norm.args[1] == (groups if through else groups // 2)


def test_units_of_standardised_weights_are_marked():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 6, 3), nn.Conv2d(6, 2, 1))
    _, coupling, *_, certificate = prune(net.eval(), (torch.randn(1, 3, 6, 6),))
    certificate.check()
    assert "normalised over the kept channels" in certificate.reference
    marked = {g.name: g.through_norm_statistics for g in coupling.groups}
    assert marked == {"0": True, "1": False}

"""Attentions made smaller in place: their attributes follow, or they are refused untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from test_attention import DEPTH, TOKENS, WIDTH
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hwprune.capture import capture, fingerprint
from hwprune.couple import couple
from hwprune.errors import ModelError
from hwprune.inplace import apply_in_place
from hwprune.plan import Plan
from hwprune.program import Program
from hwprune.rewrite import rewrite
from hwprune.verify import verify

HEADS = WIDTH // DEPTH


class Own(nn.Module):
    """Attention by attributes with usual names; cut into heads in one way or another."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = HEADS, DEPTH, WIDTH
        self.stem, self.qkv = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.proj, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        n, count, _ = x.shape
        qkv = self.qkv(x).reshape(n, count, 3, self.num_heads, self.head_dim)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.scaled_dot_product_attention(*self.heads(x))
        y = y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
        return self.head(x + self.proj(y))


class Split(Own):
    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = self.qkv(x).split(self.split_size, 2)
        return tuple(p.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for p in parts)


class Cast(Own):
    """Part of it computes in float32, whatever the model is in."""

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = super().heads(x)
        return q, k, v.to(torch.float32).mul(1.5).to(v.dtype)


class OfStream(Own):
    """The size of a head is taken from the stream that it reads."""

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        n, count, channels = x.shape
        depth = channels // self.num_heads
        qkv = self.qkv(x).reshape(n, count, 3, self.num_heads, depth)  # the line
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)


class Torchs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 3)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.attention(x, x, x)[0])  # the line


def smaller(model: nn.Module, keep: dict[str, int]) -> tuple[Program, Program]:
    """(the captured model, it with the first units of these groups only), certified."""
    torch.manual_seed(0)
    program = capture(model.eval(), (torch.randn(2, TOKENS, 10),))
    coupling = couple(program)
    assert set(keep) <= {g.name for g in coupling.groups}
    kept = {g.name: tuple(range(keep.get(g.name, g.width))) for g in coupling.groups}
    plan = Plan(fingerprint(program), kept)
    made = rewrite(program, coupling, plan)
    verify(program, coupling, plan, made).check()
    return program, made


@pytest.mark.parametrize("keep", [{"qkv": 1}, {"qkv": 3, "stem": 17}])
@pytest.mark.parametrize("kind", [Own, Split, Cast])
def test_attributes_of_attentions_follow(kind, keep):
    model = kind()
    dense, made = smaller(model, keep)
    apply_in_place(model, dense, made)
    if kind is Split:
        assert (model.split_size, model.head_dim) == (keep["qkv"] * DEPTH, DEPTH)
    else:
        assert (model.num_heads, model.head_dim) == (keep["qkv"], DEPTH)
    assert model.stem.out_features == keep.get("stem", WIDTH)
    x = torch.randn(3, TOKENS, 10)
    assert torch.allclose(model(x), made.module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "keep"),
    [
        (OfStream, {"qkv": 2}),
        (OfStream, {"stem": 20}),
        (Torchs, {"attention": 3}),
        (Torchs, {"stem": 18}),
    ],
)
def test_a_size_that_python_keeps_is_refused_with_its_line_and_nothing_changes(kind, keep):
    model, x = kind(), torch.randn(2, TOKENS, 10)
    dense, made = smaller(model, keep)
    before, output = copy.deepcopy(model.state_dict()), model(x)
    attributes = {n: dict(vars(m)) for n, m in model.named_modules()}
    with pytest.raises(
        ModelError, match=r"test_inplace_attention.py:\d+  .*# the line: .*old size"
    ):
        apply_in_place(model, dense, made)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, module in model.named_modules():
        for key, value in attributes[name].items():
            assert vars(module)[key] is value
    assert torch.equal(model(x), output)


def test_torchs_attention_follows_where_all_its_sizes_shrink_alike():
    model = Torchs()
    dense, made = smaller(model, {"attention": 2, "stem": 2 * DEPTH})
    apply_in_place(model, dense, made)
    assert (model.attention.num_heads, model.attention.embed_dim) == (2, 2 * DEPTH)
    x = torch.randn(3, TOKENS, 10)
    assert torch.allclose(model(x), made.module(x), rtol=1e-4, atol=1e-5)

"""Every spelling of attention: heads or channels of heads are units, and certified."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from graph_helpers import random_plan
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import hwprune
from hwprune.capture import capture
from hwprune.couple import Coupling, couple
from hwprune.coupling import Site
from hwprune.errors import HwpruneError, PlanError
from hwprune.forms import HEAD_DIM, HEADS
from hwprune.plan import Plan
from hwprune.program import Program
from hwprune.rewrite import rewrite
from hwprune.stages import follow
from hwprune.verify import verify

COUNT, DEPTH, TOKENS = 4, 6, 9
WIDTH = COUNT * DEPTH


def split(x: Tensor, heads: int = COUNT) -> Tensor:
    """(N, T, heads x depth) -> (N, heads, T, depth)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Separate(nn.Module):
    """Queries, keys and values by three projections; what is between is a function of heads."""

    def __init__(self, function, key_heads=COUNT, depth=DEPTH, value_depth=DEPTH):
        super().__init__()
        self.function, self.key_heads = function, key_heads
        self.q = nn.Linear(10, COUNT * depth)
        self.k = nn.Linear(10, key_heads * depth)
        self.v = nn.Linear(10, key_heads * value_depth, bias=False)
        self.out = nn.Linear(COUNT * value_depth, 5)

    def forward(self, x):
        parts = split(self.q(x)), split(self.k(x), self.key_heads), split(self.v(x), self.key_heads)
        return self.out(join(self.function(*parts)))


class Fused(nn.Module):
    """One projection, cut into queries, keys and values by a function."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut
        self.qkv = nn.Linear(10, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.out(join(F.scaled_dot_product_attention(*self.cut(self.qkv(x)))))


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def masked(q, k, v):
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None])


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


def grouped(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def repeated(q, k, v):
    """Grouped queries as Hugging Face writes them."""

    def repeat(x):
        n, heads, tokens, depth = x.shape
        x = x[:, :, None].expand(n, heads, 2, tokens, depth)
        return x.reshape(n, 2 * heads, tokens, depth)

    return F.scaled_dot_product_attention(q, repeat(k), repeat(v))


def interleaved(q, k, v):
    return sdpa(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))


def written(q, k, v):
    scores = q @ k.transpose(-2, -1) * DEPTH**-0.5
    return scores.softmax(-1) @ v


def written_mask(q, k, v):
    scores = (q / DEPTH**0.5) @ k.transpose(-2, -1)
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def einsum(q, k, v):
    weights = torch.einsum("bhid, bhjd -> bhij", q * DEPTH**-0.5, k).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def batched(q, k, v):
    """Heads and batch in one dimension, as `nn.MultiheadAttention` has them."""
    n, heads, tokens, _ = q.shape
    q, k, v = (x.reshape(n * heads, x.shape[2], x.shape[3]) for x in (q, k, v))
    weights = torch.bmm(q * DEPTH**-0.5, k.transpose(1, 2)).softmax(-1)
    return torch.bmm(weights, v).view(n, heads, tokens, -1)


def rotary(q, k, v):
    angles = torch.arange(TOKENS)[:, None] * 0.1 ** torch.arange(DEPTH // 2)
    cos, sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))

    def turn(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    return sdpa(turn(q), turn(k), v)


def normalised(q, k, v):
    """Cosine attention."""
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return (scores * 3.0).softmax(-1) @ v


CUTS = {
    "reshape_unbind": lambda x: (
        x.reshape(x.shape[0], TOKENS, 3, COUNT, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
    ),
    "reshape_select": lambda x: tuple(
        x.reshape(x.shape[0], TOKENS, 3, COUNT, DEPTH).permute(2, 0, 3, 1, 4)[i] for i in range(3)
    ),
    "per_head": lambda x: x.view(x.shape[0], TOKENS, COUNT, 3 * DEPTH).transpose(1, 2).chunk(3, -1),
    "chunk": lambda x: tuple(split(y) for y in x.chunk(3, -1)),
    "split": lambda x: tuple(split(y) for y in x.split(WIDTH, -1)),
    "slice": lambda x: tuple(split(x[..., i * WIDTH : (i + 1) * WIDTH]) for i in range(3)),
}

SPELLINGS = {
    **{f.__name__: Separate(f) for f in (sdpa, masked, causal, written, written_mask, einsum)},
    **{f.__name__: Separate(f) for f in (batched, rotary, normalised)},
    **{f.__name__: Separate(f, key_heads=2) for f in (grouped, repeated, interleaved)},
    "wide_values": Separate(sdpa, value_depth=10),
    **{f"fused_{name}": Fused(cut) for name, cut in CUTS.items()},
}
TURNED = {"rotary", "normalised"}  # positions or norms of a head need all its channels


def pruned(
    model: nn.Module, attention: str, x: Tensor | None = None, keep: float = 0.5
) -> tuple[Program, Coupling, Program]:
    """Captured with two in the batch, pruned at random, certified and run with three."""
    x = torch.randn(2, TOKENS, 10) if x is None else x
    program = capture(model.eval(), (x,))
    coupling = couple(program, attention=attention)
    plan = random_plan(program, coupling, keep)
    smaller = rewrite(program, coupling, plan)
    verify(program, coupling, plan, smaller).check()
    if program.dynamic_batch:
        more = torch.cat([x, x[:1]])
        assert smaller.module(more).shape == program.module(more).shape
    return program, coupling, smaller


@pytest.mark.parametrize("name", SPELLINGS)
def test_heads_are_units(name):
    model = SPELLINGS[name]
    program, coupling, smaller = pruned(model, HEADS)
    assert program.dynamic_batch
    (group,) = coupling.groups
    heads = getattr(model, "key_heads", COUNT)
    assert group.width == heads
    sizes = {s.parameter: i.shape[1] for s, i in group.index.items()}
    depth = model.out.in_features // COUNT
    assert sizes["out.weight"] == depth * COUNT // heads
    if isinstance(model, Fused):
        assert sizes["qkv.weight"] == sizes["qkv.bias"] == 3 * DEPTH
    else:
        assert sizes["q.weight"] == DEPTH * COUNT // heads
        assert sizes["k.weight"] == DEPTH
        assert sizes["v.weight"] == depth
    assert smaller.module.get_parameter("out.weight").shape[1] == model.out.in_features // 2


@pytest.mark.parametrize("name", SPELLINGS)
def test_channels_of_heads_are_units(name):
    model = SPELLINGS[name]
    _, coupling, smaller = pruned(model, HEAD_DIM)
    values = coupling.parameter_extents("out.weight")[1].terms
    ((group, per_unit),) = values
    assert per_unit == COUNT
    assert coupling.group(group).width == model.out.in_features // COUNT
    if isinstance(model, Separate) and name not in TURNED:
        queries = coupling.parameter_extents("q.weight")[0].terms
        assert queries == ((queries[0][0], COUNT),)
        assert queries[0][0] != group
        assert smaller.module.get_parameter("q.weight").shape[0] == WIDTH // 2


def test_the_scale_stays_that_of_the_original():
    *_, smaller = pruned(Separate(sdpa), HEAD_DIM)
    (node,) = [n for n in smaller.module.graph.nodes if "dot_product" in n.name]
    assert node.kwargs["scale"] == pytest.approx(DEPTH**-0.5)


class Single(Separate):
    """One head of all channels."""

    def forward(self, x):
        return self.out(self.function(self.q(x), self.k(x), self.v(x)))


def test_channels_of_a_single_head_are_units():
    _, coupling, _ = pruned(Single(sdpa), HEADS)
    assert [g.width for g in coupling.groups] == [WIDTH, WIDTH]


def test_a_product_that_silence_does_not_empty_stays_whole():
    """exp(0) is one: a silenced channel would still count."""

    def kernel(q, k, v):
        return q.exp() @ (k.exp().transpose(-2, -1) @ v)

    _, coupling, _ = pruned(Single(kernel), HEADS)
    (group,) = coupling.groups
    assert Site("out.weight", 1) in group.index
    reasons = {f.reason for f in coupling.frozen if Site("q.weight", 0) in f.sites}
    assert reasons == {"aten.matmul.default: a silenced channel may be nonzero in this product"}


class Windows(nn.Module):
    """Windows, rolled, with a bias by relative position and a mask, as Swin has them."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, COUNT))
        places = torch.stack(torch.meshgrid(*[torch.arange(2)] * 2, indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None]) + 1
        self.register_buffer("index", apart[0] * 3 + apart[1])
        self.norm = nn.LayerNorm(WIDTH)
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.merge = nn.Linear(4 * WIDTH, 5)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = self.norm(x).roll((-1, -1), (1, 2))
        y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(y.shape[0], 4, 3, COUNT, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) + self.table[self.index.view(-1)].view(4, 4, -1).permute(
            2, 0, 1
        )
        mask = torch.zeros(h * w // 4, 4, 4).index_fill(0, torch.tensor([1]), -9.0)
        scores = scores.view(n, h * w // 4, COUNT, 4, 4) + mask[:, None]
        y = (scores.view(-1, COUNT, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c)
        y = self.out(y).view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        x = x + y.reshape(n, h, w, c).roll((1, 1), (1, 2))
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.merge(x.mean((1, 2)))


@pytest.mark.parametrize("attention", [HEADS, HEAD_DIM])
def test_rolled_windows_with_a_relative_bias(attention):
    _, coupling, _ = pruned(Windows(), attention, torch.randn(2, 3, 4, 4))
    stream = coupling.group("stem")
    assert stream.through_norm_statistics
    assert stream.index[Site("merge.weight", 1)].shape == (WIDTH, 4)
    (other,) = (g for g in coupling.groups if g is not stream)
    assert other.width == (COUNT if attention == HEADS else DEPTH)
    assert (Site("table", 1) in other.index) == (attention == HEADS)


class Encoder(nn.Module):
    """Class token, positions, RMS norm written out, layer scale, SwiGLU and a tied head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH))
        self.scale, self.gamma = (nn.Parameter(torch.rand(WIDTH) + 0.5) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 28), nn.Linear(14, WIDTH)
        self.last = nn.RMSNorm(WIDTH)

    def norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale

    def forward(self, ids):
        x = self.words(ids)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        parts = (split(y) for y in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.gamma * self.out(join(sdpa(*parts)))
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        x = x + self.down(F.silu(gate) * value)
        return self.last(x[:, 0]) @ self.words.weight.T


@pytest.mark.parametrize("attention", [HEADS, HEAD_DIM])
def test_the_embedding_dimension_goes_through_norms(attention):
    ids = torch.randint(0, 11, (2, TOKENS))
    _, coupling, smaller = pruned(Encoder(), attention, ids)
    stream = coupling.group("words")
    assert stream.width == WIDTH
    assert stream.through_norm_statistics
    assert Site("words.weight", 1) in stream.index
    assert coupling.group("up").width == 14
    assert not coupling.group("up").through_norm_statistics
    assert smaller.module.get_parameter("last.weight").shape[0] == WIDTH // 2
    frozen = {f.sites[0]: f.reason for f in coupling.frozen}
    assert "looked up by value" in frozen[Site("words.weight", 0)]


class Talking(nn.Module):
    """Scores and weights mixed over heads, and norms of queries and keys."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(10, 3 * WIDTH)
        self.norm = nn.LayerNorm(DEPTH)
        self.before, self.after = nn.Linear(COUNT, 7), nn.Linear(7, COUNT)
        self.out = nn.Linear(WIDTH, 5)

    def forward(self, x):
        q, k, v = (split(y) for y in self.qkv(x).chunk(3, -1))
        scores = self.norm(q) @ self.norm(k).transpose(-2, -1)
        weights = self.before(scores.permute(0, 2, 3, 1)).softmax(2)
        return self.out(join(self.after(weights).permute(0, 3, 1, 2) @ v))


def test_talking_heads():
    _, coupling, _ = pruned(Talking(), HEADS)
    widths = {tuple(s.parameter for s in g.sites if s.dim == 1): g.width for g in coupling.groups}
    assert widths[("before.weight",)] == COUNT, "heads of queries and keys"
    assert widths[("out.weight",)] == COUNT, "heads of values"
    assert widths[("after.weight",)] == 7


def test_torchs_own_encoder_layer():
    layer = nn.TransformerEncoderLayer(WIDTH, COUNT, 20, batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Linear(10, WIDTH), layer, nn.Linear(WIDTH, 3))
    _, coupling, _ = pruned(net, HEADS)
    assert [g.width for g in coupling.groups] == [WIDTH, COUNT, 20]


def test_unknown_units_are_refused():
    program = capture(nn.Linear(3, 2), (torch.randn(1, 3),))
    with pytest.raises(HwpruneError, match="unknown units 'tails'"):
        couple(program, attention="tails")


class Small(nn.Module):
    """One encoder layer that the lowering knows."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 3)
        self.attention = Fused(CUTS["chunk"])
        self.attention.qkv, self.attention.out = (
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.norm(x + self.attention(x)).mean(1))


@pytest.mark.parametrize(("attention", "width"), [(HEADS, COUNT), (HEAD_DIM, DEPTH)])
def test_pruning_to_a_budget_and_again_by_its_plan(attention, width, tmp_path):
    x = torch.randn(1, TOKENS, 10)
    torch.manual_seed(0)
    model = Small()
    result = hwprune.prune(model, (x,), macs="60%", attention=attention, seed=1)
    assert result.certificate.passed
    assert "normalised over the kept channels" in result.certificate.reference
    name = "attention.qkv"
    assert result.coupling.group(name).width == width
    assert result.coupling.group("stem").through_norm_statistics
    result.plan.save(tmp_path / "plan.json")
    again = hwprune.prune(model, (x,), plan=tmp_path / "plan.json")
    assert again.plan == result.plan
    assert torch.equal(again.module(x), result.module(x))
    other = {HEADS: HEAD_DIM, HEAD_DIM: HEADS}[attention]
    with pytest.raises(PlanError, match="made with attention"):
        result.plan.check(couple(result.dense, attention=other), result.plan.fingerprint)


def test_inspect_tells_the_size_of_a_head():
    found = hwprune.inspect(Small(), (torch.randn(1, TOKENS, 10),))
    sizes = {g["name"]: (g["width"], g["unit_size"]) for g in found["groups"]}
    assert sizes == {"stem": (WIDTH, 1), "attention.qkv": (COUNT, 3 * DEPTH)}


def test_one_key_and_value_for_all_heads():
    """Heads and channels of the shared values come to lie in one dimension: one of them stays."""

    def shared(q, k, v):
        return sdpa(q, k, v).contiguous()

    _, coupling, _ = pruned(Separate(shared, key_heads=1), HEADS)
    assert len(coupling.parameter_extents("out.weight")[1].terms) == 1


def test_heads_and_then_channels_of_those_left(tmp_path):
    x = torch.randn(1, TOKENS, 10)
    torch.manual_seed(0)
    model = Small()
    images = torch.randn(8, TOKENS, 10)
    options = {"attention": "both", "branches": False, "calibrate": images}
    result = hwprune.prune(model, (x,), macs="30%", **options)
    report = result.report
    assert report["pruned"]["macs"] <= 0.3 * report["dense"]["macs"]
    assert report["pruned"]["macs"] == pytest.approx(result.plan.then.predicted["macs"])
    heads, channels = (stage["groups"] for stage in report["stages"])
    assert [s["attention"] for s in report["stages"]] == [HEADS, HEAD_DIM]
    before = {g["name"]: g["before"] for g in heads}
    assert before["attention.qkv"] == COUNT
    left = {g["name"]: g["after"] for g in heads}["attention.qkv"]
    width = next(g["after"] for g in channels if g["name"] == "attention.qkv#2")
    assert result.module.get_parameter("attention.out.weight").shape[1] == left * width
    assert result.certificate.passed
    assert result.certificate.reference.count("; then ") == 1
    for name, dims in result.kept.items():
        original = result.dense.module.get_parameter(name)
        for dim, index in dims.items():
            assert index.max() < original.shape[dim]
            assert len(index) == result.module.get_parameter(name).shape[dim]
    result.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == result.plan
    again = hwprune.prune(model, (x,), plan=tmp_path / "plan.json", calibrate=images)
    assert torch.equal(again.module(x), result.module(x))
    assert again.plan == result.plan


def test_both_stages_of_a_plan_make_a_slice_of_the_original(tmp_path):
    """The final weights are the original's at the indices that both stages keep."""
    x = torch.randn(1, TOKENS, 10)
    torch.manual_seed(0)
    model = Small()
    result = hwprune.prune(model, (x,), params="25%", attention="both")
    for name, parameter in result.module.named_parameters():
        wanted = model.get_parameter(name)
        for dim, index in result.kept.get(name, {}).items():
            wanted = wanted.index_select(dim, torch.from_numpy(index))
        assert torch.equal(wanted, parameter), name
    other = capture(Small(), (torch.randn(1, TOKENS, 10),))
    with pytest.raises(PlanError, match="file: the plan was made for another model"):
        follow(other, replace(result.plan, then=replace(result.plan.then, fingerprint="x")), "file")


def test_a_search_takes_both_but_a_coupling_one():
    program = capture(Small(), (torch.randn(1, TOKENS, 10),))
    with pytest.raises(HwpruneError, match="unknown units 'both'"):
        couple(program, attention="both")
    text = Plan("a", {}).to_json().replace('"heads"', '"both"')
    with pytest.raises(PlanError, match="'attention': unknown units 'both'"):
        Plan.from_json(text)

"""The schedule rules of transformers against float64: lanes of 8 and 16, one and two threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hwprune.capture import capture, fingerprint, specialize
from hwprune.couple import couple
from hwprune.lower import fold_batch_norm, fuse
from hwprune.lower.spec import LAST, PACKED, PLAIN, Step, TensorSpec, Workload
from hwprune.macs import macs
from hwprune.plan import Plan
from hwprune.rewrite import rewrite
from hwprune.workload import sites
from tests.kernel_cases import packed, plain, relative_error
from tests.lower_helpers import check_network, image, ops, static, steps
from tests.test_lower_cpu import runnable

S = Step
HEADS = "view:0,2,1,3"


def last(*shape: int) -> TensorSpec:
    return TensorSpec(shape, layout=LAST)


def norm(spec: TensorSpec, bias: bool = True) -> Workload:
    size = plain(spec.shape[-1])
    attrs = (("eps", 1e-5),)
    if bias:
        return Workload("layer_norm", (spec,), spec, (size, size), attrs, (S("bias"),))
    return Workload("layer_norm", (spec,), spec, (size,), attrs)


def attention(
    queries: int,
    keys: int,
    depth: int,
    width: int,
    heads: tuple[int, int] = (1, 2),
    masks: tuple[tuple[int, ...], ...] = (),
    causal: bool = False,
    layouts: tuple[str, str, str, str] = (PLAIN, PLAIN, PLAIN, PLAIN),
) -> Workload:
    shapes = [(*heads, queries, depth), (*heads, keys, depth), (*heads, keys, width)]
    inputs = [TensorSpec(s, layout=at) for s, at in zip(shapes, layouts, strict=False)]
    inputs += [plain(*sizes) for sizes in masks]
    attrs = (("causal", causal), ("scale", 0.3))
    output = TensorSpec((*heads, queries, width), layout=layouts[3])
    return Workload("attention", tuple(inputs), output, (), attrs)


def layout(source: TensorSpec, result: str = PLAIN) -> Workload:
    return Workload("layout", (source,), TensorSpec(source.shape, layout=result))


def roll(sizes: tuple[int, ...], axes: tuple[int, ...], shifts: tuple[int, ...]) -> Workload:
    return Workload(
        "roll", (plain(*sizes),), plain(*sizes), (), (("axes", axes), ("shifts", shifts))
    )


def pixels(steps: tuple[Step, ...], flipped: bool) -> Workload:
    result = packed(1, 40, 5, 7) if flipped else last(1, 5, 7, 40)
    extras = tuple(result for s in steps if s.op == "add")
    params = tuple(plain(40) for s in steps for _ in range({"bias": 1, "affine": 2}.get(s.op, 0)))
    return Workload(
        "linear", (last(1, 5, 7, 13), *extras), result, (plain(40, 13), *params), (), steps
    )


PARTS = tuple(f"view:0,2,{i}/3,1,3" for i in range(3))
CASES = {
    "norm": norm(plain(2, 5, 64)),
    "norm-tail": norm(plain(3, 77)),
    "norm-short": norm(plain(1, 4, 5, 3), bias=False),
    "norm-pixels": norm(last(1, 5, 6, 48)),
    "norm-pixels-tail": norm(last(2, 3, 5, 37)),
    "norm-pixels-few": norm(last(1, 2, 3, 5), bias=False),
    "softmax": Workload("softmax", (plain(2, 3, 49),), plain(2, 3, 49)),
    "softmax-whole": Workload("softmax", (plain(5, 64),), plain(5, 64)),
    "softmax-short": Workload("softmax", (plain(7, 3),), plain(7, 3)),
    "attention": attention(49, 49, 32, 32),
    "attention-long": attention(131, 131, 16, 16, heads=(1, 3)),
    "attention-cross": attention(5, 70, 24, 13, heads=(2, 1)),
    "attention-one": attention(1, 33, 8, 8, heads=(1, 1)),
    "attention-mask": attention(21, 37, 20, 20, masks=((1, 1, 1, 37),)),
    "attention-bias": attention(21, 32, 20, 20, heads=(2, 3), masks=((1, 3, 21, 32),)),
    "attention-flat-bias": attention(9, 11, 8, 8, masks=((9, 11),)),
    "attention-windows": attention(
        9, 9, 8, 8, heads=(4, 3), masks=((1, 3, 9, 9), (1, 4, 1, 9, 9)), layouts=(*PARTS, HEADS)
    ),
    "attention-causal": attention(40, 40, 16, 16, causal=True),
    "attention-parts": attention(19, 19, 32, 32, layouts=(*PARTS, HEADS)),
    "concat": Workload(
        "concat",
        (plain(1, 5, 19), TensorSpec((1, 5, 8), layout="view:0,2/4,1,2"), plain(1, 5, 32)),
        plain(1, 5, 59),
        (),
        (("axis", 2),),
    ),
    "concat-rows": Workload(
        "concat", (plain(1, 1, 40), plain(1, 6, 40)), plain(1, 7, 40), (), (("axis", 1),)
    ),
    "slice": Workload(
        "slice",
        (plain(2, 9, 19),),
        plain(2, 3, 19),
        (),
        (("axis", 1), ("start", 2), ("step", 3), ("stop", 9)),
    ),
    "roll": roll((1, 6, 5, 19), (1, 2), (-3, 2)),
    "roll-vectors": roll((2, 4, 5, 16), (1, 2), (-3, 1)),
    "roll-last": roll((3, 21), (1,), (5,)),
    "every-second": layout(TensorSpec((1, 4, 3, 10), layout="view:0,1,1/2,2,0/2,3")),
    "transpose": layout(TensorSpec((3, 37, 21), layout="view:0,2,1")),
    "transpose-whole": layout(TensorSpec((32, 48), layout="view:1,0")),
    "transpose-heads": layout(TensorSpec((1, 3, 21, 20), layout=HEADS)),
    "windows": layout(TensorSpec((1, 2, 3, 4, 5, 9), layout="view:0,1,3,2,4,5")),
    "part": layout(TensorSpec((4, 6, 10), layout="view:0,1,2/3,2")),
    "first-moved": layout(TensorSpec((6, 5, 7), layout="view:2,0,1")),
    "pack-pixels": layout(TensorSpec((1, 21, 4, 5), layout="view:0,2,3,1"), PACKED),
    "unpack-pixels": layout(last(1, 4, 5, 21)),
    "pixels": pixels((S("bias"), S("gelu")), flipped=False),
    "pixels-flipped": pixels((S("bias"), S("affine"), S("add")), flipped=True),
    "linear-gelu": Workload(
        "linear",
        (plain(1, 19, 30),),
        plain(1, 19, 64),
        (plain(64, 30), plain(64)),
        (),
        (S("bias"), S("gelu")),
    ),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("case", CASES)
def test_rule_matches_float64(case: str, name: str, threads: int) -> None:
    assert relative_error(CASES[case], runnable(name), threads) < 2e-6


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values, as timm writes it."""

    def __init__(self, size: int = 48, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(b, t, c))


@pytest.mark.parametrize("batch", [1, 2])
def test_heads_are_read_where_the_projection_left_them(batch: int) -> None:
    calls = check_network(static(Attention().eval(), image(batch, 17, 48))).calls
    assert ops(calls) == ["layer_norm", "linear", "attention", "linear"]
    assert steps(calls[3]) == ["bias", "add"]
    expected = [f"view:0,2,{i}/3,1,3" for i in range(3)]
    assert [t.layout for t in calls[2].workload.inputs] == expected
    assert calls[2].workload.output.layout == HEADS


def test_torch_multi_head_attention_moves_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.mha(x, x, x, need_weights=False)[0]

    calls = check_network(static(Net().eval(), image(1, 9, 32))).calls
    assert ops(calls) == ["linear", "attention", "linear"]


class ConvNeXtBlock(nn.Module):
    def __init__(self, size: int = 20) -> None:
        super().__init__()
        self.conv = nn.Conv2d(size, size, 7, padding=3, groups=size)
        self.norm, self.up = nn.LayerNorm(size), nn.Linear(size, 4 * size)
        self.down, self.scale = nn.Linear(4 * size, size), nn.Parameter(torch.rand(size, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + self.scale * y


def test_a_convnext_block_stays_packed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 20, 2, 2), ConvNeXtBlock(), nn.AvgPool2d(2))
    calls = check_network(static(model, image(1, 3, 12, 14))).calls
    expected = ["conv2d", "conv2d", "layer_norm", "linear", "linear", "avg_pool2d", "layout"]
    assert ops(calls) == expected
    assert steps(calls[3]) == ["bias", "gelu"]
    assert steps(calls[4]) == ["bias", "affine", "add"]


def test_transposes_that_a_reader_cannot_take_are_one_copy() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(12, 20)

        def forward(self, x: Tensor) -> Tensor:
            n, h, w, c = x.shape
            y = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
            return self.line(y.reshape(-1, 4, c)).softmax(-1).transpose(1, 2)

    lowered = check_network(static(Windows(), image(1, 4, 6, 12)))
    assert ops(lowered.calls) == ["layout", "linear", "softmax", "layout"]
    assert "fallback" not in {rule for rule, _ in lowered.rules.values()}


class ShiftedWindows(nn.Module):
    """Attention written as two products, with a bias and a mask that is made in place."""

    def __init__(self, size: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.bias = heads, nn.Parameter(torch.randn(1, heads, 4, 4))
        self.qkv = nn.Linear(size, 3 * size)

    def forward(self, x: Tensor) -> Tensor:
        windows, t, c = x.shape
        qkv = self.qkv(x).reshape(windows, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (qkv[0] * 0.25) @ qkv[1].transpose(-2, -1) + self.bias
        mask = x.new_zeros((windows, t, t))
        mask[1:, :2, 2:] = -100.0
        scores = scores.view(1, windows, self.heads, t, t) + mask.unsqueeze(1).unsqueeze(0)
        y = scores.view(-1, self.heads, t, t).softmax(-1) @ qkv[2]
        return y.transpose(1, 2).reshape(windows, t, c)


def test_attention_written_out_is_one_kernel() -> None:
    program = specialize(capture(ShiftedWindows().eval(), (image(3, 4, 24),)))
    if program.dynamic_batch:
        pytest.skip("the number of windows is fixed in the model")
    calls = check_network(program).calls
    assert ops(calls) == ["linear", "attention"]
    assert len(calls[1].workload.inputs) == 5
    assert calls[1].workload.attr("scale") == 0.25


class Encoder(nn.Module):
    """Attention and a feed-forward layer, whose width is what can be pruned."""

    def __init__(self, size: int = 48) -> None:
        super().__init__()
        self.attention, self.norm = Attention(size), nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 80), nn.Linear(80, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return x + self.down(F.gelu(self.up(self.norm(x))))


def test_sites_are_the_kernels_of_the_pruned_network() -> None:
    torch.manual_seed(0)
    program = capture(Encoder().eval(), (image(1, 17, 48),))
    coupling = couple(program)
    folded = fold_batch_norm(specialize(program))
    found = sites(fuse(folded), coupling, folded)
    kept = {g.name: tuple(range(g.width * 2 // 3)) for g in coupling.groups}
    plan = Plan(fingerprint(program), kept)
    smaller = fuse(fold_batch_norm(specialize(rewrite(program, coupling, plan))))
    assert kept
    assert not any(site.dense for site in found)
    assert [s.workload(plan.widths()) for s in found] == [c.workload for c in smaller]


def test_attention_counts_both_products() -> None:
    assert macs(attention(5, 70, 24, 13, heads=(2, 1))) == 2 * 5 * 70 * (24 + 13)

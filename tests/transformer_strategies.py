"""Hypothesis strategies of what transformers add: norms, softmax, attention, views."""

from __future__ import annotations

from itertools import permutations

from hypothesis import strategies as st

from hwprune.lower.spec import LAST, PACKED, PLAIN, Step, TensorSpec, Workload
from tests.kernel_cases import plain

Draw = st.DrawFn
SIZES = st.integers(1, 40)
FEW = st.integers(1, 4)
HEADS = "view:0,2,1,3"  # a projection's result, read as heads


@st.composite
def norms(draw: Draw) -> Workload:
    """Of rows, and of the pixels of a packed image."""
    outer = tuple(draw(st.lists(FEW, min_size=1, max_size=3)))
    spec = plain(*outer, draw(SIZES))
    if draw(st.booleans()):
        spec = TensorSpec((draw(FEW), draw(FEW), draw(FEW), draw(SIZES)), layout=LAST)
    steps = draw(st.sampled_from([(), (Step("bias"),)]))
    params = (plain(spec.shape[-1]),) * (1 + len(steps))
    return Workload("layer_norm", (spec,), spec, params, (("eps", 1e-5),), steps)


@st.composite
def softmaxes(draw: Draw) -> Workload:
    """Of rows of any length."""
    spec = plain(*draw(st.lists(FEW, max_size=3)), draw(SIZES))
    return Workload("softmax", (spec,), spec)


@st.composite
def attentions(draw: Draw) -> Workload:
    """Any numbers of queries, keys and channels, masked or not, where the projections left them."""
    batch, heads = draw(FEW), draw(FEW)
    queries, keys, depth, width = (draw(SIZES) for _ in range(4))
    shapes = ((queries, depth), (keys, depth), (keys, width))
    inputs = [
        TensorSpec((batch, heads, *shape), layout=draw(st.sampled_from((PLAIN, HEADS))))
        for shape in shapes
    ]
    whole = (batch, heads, queries, keys)
    for _ in range(draw(st.integers(0, 2))):
        sizes = [size if draw(st.booleans()) else 1 for size in whole]
        while len(sizes) > 2 and sizes[0] == 1 and draw(st.booleans()):
            sizes = sizes[1:]  # leading dimensions of size 1 may be left out
        inputs.append(plain(*sizes))
    causal = queries == keys and draw(st.booleans())
    output = TensorSpec(
        (batch, heads, queries, width), layout=draw(st.sampled_from((PLAIN, HEADS)))
    )
    attrs = (("causal", causal), ("scale", draw(st.sampled_from((0.1, 0.3, 1.0)))))
    return Workload("attention", tuple(inputs), output, (), attrs)


@st.composite
def views(draw: Draw) -> Workload:
    """A tensor whose dimensions lie in another order, made row-major or packed."""
    order = draw(st.sampled_from(list(permutations(range(4)))))
    shape = tuple(draw(st.integers(1, 20)) for _ in order)
    source = TensorSpec(shape, layout=f"view:{','.join(map(str, order))}")
    result = draw(st.sampled_from((PLAIN, PACKED)))
    return Workload("layout", (source,), TensorSpec(shape, layout=result))

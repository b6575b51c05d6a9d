"""Views: what the algebra says of a layout is what torch does to a tensor."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwprune.lower.packing import pack, unpack
from hwprune.lower.spec import TensorSpec
from hwprune.lower.view import View


def seen(memory: Tensor, view: View, shape: tuple[int, ...]) -> Tensor:
    layout = "plain" if view.is_whole else view.text
    spec = TensorSpec(shape, layout=layout)
    return unpack(memory.reshape(spec.physical(8)), spec)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_chain_of_views_is_what_torch_makes_of_it(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    memory = torch.arange(torch.Size(sizes).numel(), dtype=torch.float32).reshape(sizes)
    tensor, view = memory, View.whole(len(sizes))
    for _ in range(data.draw(st.integers(0, 5))):
        tensor, view = step(data, tensor, view)
        assert torch.equal(seen(memory, view, tuple(tensor.shape)), tensor)
        view = view.normal(tensor.shape)
        assert torch.equal(seen(memory, view, tuple(tensor.shape)), tensor)
        assert View.parse(view.text) == view


def step(data: st.DataObject, tensor: Tensor, view: View) -> tuple[Tensor, View]:
    kind = data.draw(st.sampled_from(["permute", "select", "part", "reshape"]))
    rank = tensor.ndim
    if kind == "permute":
        dims = data.draw(st.permutations(range(rank)))
        return tensor.permute(dims), view.permuted(dims)
    dim = data.draw(st.integers(0, rank - 1))
    size = tensor.shape[dim]
    index = data.draw(st.integers(0, size - 1))
    if kind == "select" and rank > 1:
        return tensor.select(dim, index), view.selected(dim, index, size)
    if kind == "part" and size % 2 == 0:
        return tensor.chunk(2, dim)[index % 2], view.part(dim, index % 2, 2)
    shape = [tensor.numel()]
    if size % 2 == 0 or size == 3:
        split = [2, size // 2] if size % 2 == 0 else [1, 3]
        shape = [*tensor.shape[:dim], *split, *tensor.shape[dim + 1 :]]
    found = view.reshaped(tensor.shape, shape)
    return (tensor, view) if found is None else (tensor.reshape(shape), found)


def test_the_memory_of_other_parts_is_left_alone() -> None:
    spec = TensorSpec((2, 3, 4), layout="view:0,1/3,2,1")
    tensor = torch.randn(2, 3, 4)
    assert torch.equal(unpack(pack(tensor, spec, 8), spec), tensor)
    assert spec.physical(8) == (2, 3, 4, 3)


def test_a_transpose_cannot_be_merged() -> None:
    assert View.whole(2).permuted((1, 0)).reshaped((3, 4), (12,)) is None

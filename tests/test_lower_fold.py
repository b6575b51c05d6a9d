import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import LoweringError
from hwprune.lower.affine import channel_affine
from hwprune.lower.fold import fold_batch_norm
from hwprune.lower.functional import packet
from tests.lower_helpers import image, outputs, static


def packets(program) -> list[str]:
    return [packet(n).removeprefix("aten.") for n in program.module.graph.nodes if packet(n)]


def folded_like(program, tolerance: float = 2e-5):
    """Fold; the outputs must be the same and no batch norm may be left."""
    expected = outputs(program)
    folded = fold_batch_norm(program)
    for ours, theirs in zip(outputs(folded), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    assert not any("batch_norm" in name for name in packets(folded))
    return folded


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_moves_into_the_convolution(bias: bool, affine: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8, affine=affine))
    program = static(model, image(2, 3, 9, 9))
    before = {k: v.clone() for k, v in program.module.state_dict().items()}
    folded = folded_like(program)
    assert packets(folded) == ["conv2d"]
    conv = next(n for n in folded.module.graph.nodes if packet(n) == "aten.conv2d")
    assert conv.name in {n.name for n in program.module.graph.nodes}
    assert [str(a.target) for a in conv.args[1:3]] == ["0.weight", "0.bias"]
    for name, tensor in program.module.state_dict().items():
        assert torch.equal(tensor, before[name])  # the given program is left alone


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_batch_norm_after_linear_and_alone(rank: int) -> None:
    layers = {
        2: (nn.Linear(6, 5), nn.BatchNorm1d(5), (7, 6)),
        3: (nn.Conv1d(6, 5, 3), nn.BatchNorm1d(5), (2, 6, 11)),
        4: (nn.ReLU(), nn.BatchNorm2d(6), (2, 6, 4, 4)),
    }
    first, norm, shape = layers[rank]
    folded = folded_like(static(nn.Sequential(first, norm), image(*shape)))
    if rank == 2:
        assert packets(folded) == ["linear"]
    if rank == 4:
        assert packets(folded) == ["relu", "channel_affine"]


def test_linear_on_sequences_is_not_folded_along_the_wrong_axis() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    folded_like(static(model, image(2, 5, 6)))


def test_weights_shared_by_two_calls_are_not_folded_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.bn2(self.conv(self.bn1(self.conv(x)))))

    folded = folded_like(static(Shared(), image(1, 4, 6, 6)))
    names = [str(n.target) for n in folded.module.graph.nodes if n.op == "get_attr"]
    assert sum("conv.weight" in name for name in names) == 3
    assert "conv.weight" in names


def test_a_convolution_that_is_also_read_elsewhere_keeps_its_values() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, self.bn(y)

    folded = folded_like(static(Two(), image(1, 3, 5, 5)))
    assert packets(folded) == ["conv2d", "channel_affine"]


def test_arithmetic_with_constants_folds_and_in_place_operators_go() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.gamma = nn.Parameter(image(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv((x - 0.5) / 0.25) * self.gamma
            y += 3.0
            return 1.0 - y.mul_(2.0).relu_()

    folded = folded_like(static(Scaled(), image(1, 3, 6, 6)))
    assert packets(folded) == ["channel_affine", "conv2d", "relu", "channel_affine"]


def test_in_place_writes_are_seen_by_later_readers() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = y + 1
            y.relu_()
            return y + z

    folded_like(static(Late(), image(1, 3, 6, 6)))


def test_writes_through_views_are_refused() -> None:
    class Through(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, :1].relu_()
            return y + 1

    with pytest.raises(LoweringError, match="view") as error:
        fold_batch_norm(static(Through(), image(1, 3, 6, 6)))
    assert "test_lower_fold.py" in error.value.where


def test_constants_are_evaluated_and_dropout_goes() -> None:
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(image(4, 3, 1, 1))
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight / self.weight.norm()
            return self.drop(nn.functional.conv2d(x, weight)) + torch.arange(4.0).view(1, 4, 1, 1)

    assert packets(folded_like(static(Constants(), image(1, 3, 4, 4)))) == ["conv2d"]


def test_batch_norm_without_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(LoweringError, match="training mode"):
        fold_batch_norm(static(model, image(2, 3, 4, 4)))


def test_prelu_with_one_slope() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(init=0.3))
    folded = folded_like(static(model, image(1, 3, 4, 4)))
    node = next(n for n in folded.module.graph.nodes if packet(n) == "aten.prelu")
    assert node.args[1].meta["val"].shape == (4,)


def test_channel_affine_axes() -> None:
    scale, shift = image(3), image(3, seed=1)
    for shape in ((2, 3), (2, 5, 3), (2, 3, 4, 4)):
        x = image(*shape)
        moved = x.movedim(1, -1) if len(shape) == 4 else x
        expected = moved * scale + shift
        expected = expected.movedim(-1, 1) if len(shape) == 4 else expected
        assert torch.allclose(channel_affine(x, scale, shift), expected)

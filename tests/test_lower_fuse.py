import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hwprune.errors import LoweringError
from hwprune.lower import fold_batch_norm, fuse
from hwprune.lower.spec import PACKED, PLAIN
from tests.lower_helpers import check_network, image, ops, static, steps


def calls_of(model: nn.Module, *inputs: Tensor):
    return fuse(fold_batch_norm(static(model, *inputs)))


class Block(nn.Module):
    """A residual block with a projection: the later convolution takes the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24)
        self.down, self.bn3 = nn.Conv2d(16, 24, 1, 2, bias=False), nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += self.bn3(self.down(x))
        return torch.relu_(y)


def test_residual_block_is_three_kernels() -> None:
    calls = calls_of(Block(), image(1, 16, 8, 8))
    assert ops(calls) == ["layout", "conv2d", "conv2d", "conv2d", "layout"]
    assert [steps(c) for c in calls[1:4]] == [["bias", "relu"], ["bias"], ["bias", "add", "relu"]]
    assert calls[3].args[1] == calls[2].output
    assert all(c.workload.output.layout == PACKED for c in calls[1:4])
    check_network(static(Block(), image(1, 16, 8, 8)))


def test_first_convolution_reads_the_plain_image_and_takes_the_padding() -> None:
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.ReLU6())
    calls = calls_of(model, image(1, 3, 8, 8))
    assert ops(calls) == ["conv2d", "layout"]
    assert calls[0].workload.inputs[0].layout == PLAIN
    assert calls[0].workload.attr("padding") == (0, 0, 1, 1)
    assert calls[0].workload.epilogue[1].args == (0.0, 6.0)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (F.relu, "relu"),
        (F.silu, "silu"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: torch.sigmoid(x) * x, "silu"),
        (F.hardswish, "hardswish"),
        (lambda x: x * F.hardsigmoid(x), "hardswish"),
        (F.hardsigmoid, "hardsigmoid"),
        (torch.sigmoid, "sigmoid"),
        (torch.tanh, "tanh"),
        (F.gelu, "gelu"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
        (F.elu, "elu"),
        (lambda x: F.leaky_relu(x, 0.2), "leaky_relu"),
        (lambda x: x.clamp(-0.5, 0.5), "clamp"),
        (lambda x: x.clamp(min=0.25), "clamp"),
        (lambda x: x.clamp(max=0.25), "clamp"),
        (lambda x: x.clamp(min=0.0), "relu"),
    ],
)
@pytest.mark.parametrize("layer", [nn.Conv2d(5, 20, 1), nn.Linear(8, 20)])
def test_activations_join_their_layer(activation, expected: str, layer: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return activation(self.layer(x))

    x = image(1, 5, 6, 6) if isinstance(layer, nn.Conv2d) else image(3, 8)
    calls = check_network(static(Net(), x)).calls
    assert steps(calls[0]) == ["bias", expected]
    assert [op for op in ops(calls) if op != "layout"] == [calls[0].workload.op]


def test_squeeze_excite_gate_is_one_elementwise_kernel() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 20, 3, padding=1)
            self.down, self.up = nn.Conv2d(20, 5, 1), nn.Conv2d(5, 20, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.silu(self.conv(x))
            gate = self.up(F.silu(self.down(F.adaptive_avg_pool2d(y, 1))))
            return torch.sigmoid(gate) * y

    calls = check_network(static(Gate(), image(2, 3, 7, 7))).calls
    expected = ["conv2d", "global_avg_pool", "conv2d", "conv2d", "elementwise", "layout"]
    assert ops(calls) == expected
    assert steps(calls[4]) == ["mul"]
    assert calls[4].workload.inputs[1].shape == (2, 20, 1, 1)


def test_pool_and_flatten_give_a_plain_vector() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(10, 4)
    )
    calls = check_network(static(model, image(2, 3, 6, 6))).calls
    assert ops(calls) == ["conv2d", "global_avg_pool", "linear"]
    assert calls[1].workload.output.shape == (2, 10)


def test_flatten_of_an_image_goes_through_one_layout_call() -> None:
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.Flatten(), nn.Linear(20 * 16, 4))
    calls = check_network(static(model, image(2, 3, 6, 6))).calls
    assert ops(calls) == ["conv2d", "layout", "linear"]
    assert calls[2].workload.inputs[0].shape == (2, 320)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", [7, 8, 9, 10])
def test_pools(ceil: bool, size: int) -> None:
    class Pools(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (
                F.max_pool2d(x, 3, 2, 1, ceil_mode=ceil),
                F.max_pool2d(x, 2, ceil_mode=ceil),
                F.avg_pool2d(x, 3, 2, 1, ceil_mode=ceil),
                F.avg_pool2d(x, 3, 2, 1, ceil_mode=ceil, count_include_pad=False),
                F.avg_pool2d(x, 2, 2, divisor_override=3),
            )

    check_network(static(Pools(), image(1, 20, size, size)))


def test_dense_concatenation_stays_packed() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn = nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(36)
            self.conv2, self.conv3 = nn.Conv2d(20, 16, 1), nn.Conv2d(36, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv1(x)
            both = torch.cat([y, self.conv2(y)], 1)
            return self.conv3(torch.relu(self.bn(both)))

    calls = check_network(static(Dense(), image(1, 3, 6, 6))).calls
    assert ops(calls) == ["conv2d", "conv2d", "concat", "conv2d", "layout"]
    assert steps(calls[2]) == ["affine", "relu"]


def test_channel_shuffle_and_chunk_stay_packed() -> None:
    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 36, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            n, c, h, w = y.shape
            y = y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
            a, b = y.chunk(2, 1)
            return torch.cat([b, a[:, ::3]], 1)

    calls = check_network(static(Shuffle(), image(1, 3, 5, 5))).calls
    assert ops(calls) == ["conv2d", "shuffle", "slice", "slice", "slice", "concat", "layout"]
    assert calls[1].workload.attr("groups") == 2


def test_values_used_twice_and_outputs_of_all_kinds() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)
            self.table = nn.Parameter(image(2, 2))

        def forward(self, x: Tensor, z: Tensor) -> dict[str, object]:
            y = self.conv(x)
            doubled = y + y
            return {
                "input": z,
                "twice": [doubled, doubled],
                "squared": y * y,
                "flat": y.flatten(1),
                "constant": self.table,
                "raw": y,
            }

    check_network(static(Many(), image(1, 3, 4, 4), image(1, 6)))


def test_operands_that_cannot_be_packed() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 20, 1)
            self.place = nn.Parameter(image(1, 1, 4, 4))
            self.full = nn.Parameter(image(1, 20, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x) * torch.sigmoid(x.mean(1, keepdim=True))
            return (y + self.full).relu() - self.place

    check_network(static(Mixed(), image(1, 3, 4, 4)))


def test_a_late_operand_delays_the_kernel() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 20, 1), nn.Conv2d(3, 20, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = F.max_pool2d(self.other(x), 3, 1, 1)
            return torch.relu(y + z)

    calls = check_network(static(Late(), image(1, 3, 6, 6))).calls
    assert ops(calls) == ["conv2d", "max_pool2d", "conv2d", "layout"]
    assert steps(calls[2]) == ["bias", "add", "relu"]


def test_grouped_dilated_and_asymmetric_convolutions() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(40, 20, 3, padding=1, groups=4)
            self.dilated = nn.Conv2d(20, 12, 3, padding=2, dilation=2)
            self.tall = nn.Conv2d(12, 12, (3, 1), stride=(2, 1), padding=(1, 0), groups=12)
            self.same = nn.Conv2d(12, 7, 4, padding="same")

        def forward(self, x: Tensor) -> Tensor:
            return self.same(self.tall(self.dilated(self.grouped(x))))

    calls = check_network(static(Kinds(), image(2, 40, 9, 7))).calls
    assert ops(calls).count("conv2d") == 4


def test_prelu_permute_and_softmax_of_a_detector_head() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 20, 3), nn.PReLU(20)
            self.dense, self.out = nn.Linear(20 * 16, 8), nn.Linear(8, 2)
            self.act2 = nn.PReLU(8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.act(self.conv(x)).permute(0, 3, 2, 1).contiguous()
            y = self.act2(self.dense(y.view(y.shape[0], -1)))
            return self.out(y), torch.softmax(self.out(y), 1)

    calls = check_network(static(Head(), image(2, 3, 6, 6))).calls
    assert steps(calls[0]) == ["bias", "prelu"]


def test_nodes_that_are_no_tensor_computation_are_refused() -> None:
    program = fold_batch_norm(static(nn.ReLU(), image(1, 3)))
    for node in program.module.graph.nodes:
        if node.op == "call_function":
            node.target = len
    with pytest.raises(LoweringError, match="cannot lower"):
        fuse(program)


def test_call_names_and_outputs_are_unique() -> None:
    calls = calls_of(Block(), image(1, 16, 8, 8))
    assert len({c.name for c in calls}) == len({c.output for c in calls}) == len(calls)
    known = {n for c in calls for n in c.nodes}
    assert {"conv2d", "conv2d_1", "conv2d_2"} <= known

"""Models that are unusual: each works, or is refused with its layer and source line."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from graph_helpers import prune
from torch import Tensor, nn

from hwprune.capture import capture
from hwprune.errors import ModelError

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
HERE = r"test_model_check.py:\d+"


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))


class Net(nn.Module):
    """Holds `body` and calls it on what `before` makes of the input."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body if body is not None else layers()

    def before(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.before(x))


class Branching(Net):
    def before(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Counting(Net):
    def before(self, x: Tensor) -> Tensor:
        for _ in range(int(x.max().item())):
            x = x + 1
        return x


@torch.library.custom_op("hwprune_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


class Custom(Net):
    def before(self, x: Tensor) -> Tensor:
        return twice(x)


class Chosen(Net):
    def before(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0]


class Scaled(Net):
    def before(self, x: Tensor) -> Tensor:
        return x * x.argmax().item()


@torch.library.custom_op("hwprune_tests::thrice", mutates_args=())
def thrice(x: Tensor) -> Tensor:
    return x * 3


@thrice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Undifferentiable(Net):
    def before(self, x: Tensor) -> Tensor:
        return thrice(x)


class Noisy(Net):
    def before(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.phase = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.second((self.first(x) * self.phase).real)


class Integer(Complex):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.arange(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.phase)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.again, self.third.weight = self.second, self.second.weight
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.third(self.again(self.second(self.first(x)).relu())).relu())


@pytest.mark.parametrize(
    ("model", "code"),
    [(Branching(), r"if x\.sum\(\) > 0"), (Counting(), r"range\(int\(x\.max\(\)\.item\(\)\)\)")],
)
def test_control_flow_that_depends_on_data_names_its_line(model, code):
    with pytest.raises(ModelError, match=rf"{HERE}: .*cannot be exported .*{code}"):
        capture(model, (X.abs(),))


def test_an_operator_without_a_fake_is_named():
    with pytest.raises(ModelError, match=rf"{HERE}: .*hwprune_tests.twice.*register_fake"):
        capture(Custom(), (X,))


@pytest.mark.parametrize(
    ("model", "operator"),
    [(Chosen(nn.Linear(6, 3)), "aten.index.Tensor"), (Scaled(), "aten.item.default")],
)
def test_sizes_and_numbers_that_depend_on_values_name_their_line(model, operator):
    with pytest.raises(ModelError, match=rf"{HERE}  .*: sizes depend on values .*{operator}"):
        capture(model, (X,))


def test_an_operator_without_gradients_is_certified_by_its_values():
    *_, certificate = prune(Undifferentiable(), (X,))
    certificate.check()
    assert certificate.gradient_rel_error is None
    assert "cannot be differentiated" in certificate.reference


def test_noise_is_left_out_of_the_certificate():
    *_, certificate = prune(Noisy(), (X,))
    certificate.check()
    assert certificate.gradient_rel_error is not None


def test_complex_parameters_are_refused_integer_ones_work():
    with pytest.raises(ModelError, match=rf"{HERE}: phase is complex"):
        capture(Complex(), (X,))
    _, coupling, _, smaller, certificate = prune(Integer(), (X,))
    certificate.check()
    assert [g.width for g in coupling.groups] == [8]
    assert smaller.module.get_parameter("phase").dtype is torch.int64
    assert len(smaller.module.get_parameter("phase")) == 4


def test_parameters_and_modules_under_two_names():
    _, coupling, _, smaller, certificate = prune(Shared(), (X,))
    certificate.check()
    assert [g.width for g in coupling.groups] == [8]
    state = smaller.module.state_dict(keep_vars=True)
    assert state.keys() == Shared().state_dict().keys()
    names = ("second.weight", "again.weight", "third.weight")
    assert len({id(state[name]) for name in names}) == 1
    assert tuple(state["third.weight"].shape) == (4, 4)


def test_lazy_layers_are_named():
    model = Net(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)))
    with pytest.raises(ModelError, match=rf"{HERE}: body.0 \(LazyLinear\) is lazy"):
        capture(model, (X,))
    model(X)
    prune(model, (X,))[-1].check()


def test_quantised_layers_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ModelError, match=rf"{HERE}: body.0 \(Linear\) is quantised"):
        capture(model, (X,))


@pytest.mark.parametrize("training", [False, True])
def test_observers_are_named(training):
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(6, 8)).train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = "get_default_qat_qconfig" if training else "get_default_qconfig"
        model.qconfig = getattr(torch.ao.quantization, kind)("x86")
        turn = torch.ao.quantization.prepare_qat if training else torch.ao.quantization.prepare
        observed = turn(model)
    with pytest.raises(ModelError, match=r"0.activation_post_process \(.*\) is quantised"):
        capture(observed, (X,))


def test_sparse_parameters_and_torchscript_are_refused():
    model = Net()
    model.body[3].weight = nn.Parameter(model.body[3].weight.detach().to_sparse())
    with pytest.raises(ModelError, match=rf"{HERE}: body.3.weight is sparse .*to_dense"):
        capture(model, (X,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(layers().eval(), X)
    for given in (scripted, Net(scripted)):
        with pytest.raises(ModelError, match=r"is TorchScript .*pass the nn.Module"):
            capture(given, (X,))


def test_train_mode_is_captured_evaluated_and_stays():
    model = Net().train()
    wanted = copy.deepcopy(model).eval()(X)
    program, *_, certificate = prune(model, (X,))
    certificate.check()
    assert model.training
    assert torch.equal(program.module(X), wanted)


def test_models_and_inputs_on_other_devices():
    model = Net(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3, device="meta")))
    with pytest.raises(ModelError, match=rf"{HERE}: body.1.weight is on the meta device"):
        capture(model, (X,))
    with pytest.raises(ModelError, match=r"inputs\[0\]: is on meta, the model on cpu"):
        capture(Net(), (X.to("meta"),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype):
    *_, smaller, certificate = prune(Net().to(dtype), (X.to(dtype),))
    certificate.check()
    assert smaller.module(X.to(dtype)).dtype is dtype
    assert all(p.dtype is dtype for p in smaller.module.parameters())
    with pytest.raises(ModelError, match=r"does not run on inputs of shape \(2, 6\): .*dtype"):
        capture(Net().to(dtype), (X,))


def test_integers_where_the_model_wants_numbers():
    with pytest.raises(ModelError, match=r"does not run on inputs of shape \(2, 6\): .*dtype"):
        capture(Net(), (X.long(),))


def test_what_is_no_model_or_no_tensor():
    with pytest.raises(ModelError, match="a int is not a model"):
        capture(3, (X,))
    with pytest.raises(ModelError, match=r"inputs\[1\]: a NoneType is not a tensor"):
        capture(Net(), (X, None))

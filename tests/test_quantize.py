"""Quantization: integers against their simulation and against float, and what may go wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import hwprune
from examples import tiny
from hwprune.capture import Program, capture
from hwprune.errors import HwpruneError, LoweringError
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.fidelity import snr_db, value_fidelity
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.quantize.tune import tune
from hwprune.recover import TrainConfig
from tests.lower_helpers import randomise
from tests.quantize_networks import NETWORKS, batch, check_each_operator
from tests.small_net import small_net

CONFIGS = {
    "minmax": QuantConfig("minmax"),
    "percentile": QuantConfig("percentile", percentile=99.9),
    "mse": QuantConfig("mse"),
    "both": QuantConfig("mse", equalise=True, correct_bias=True),
}


@cache
def minmax(name: str) -> tuple[Program, Tensor, Quantized]:
    """A network, inputs and what the inputs' extremes make of it; not to be changed."""
    program, images = captured(name)
    return program, images, quantize_program(program, images, QuantConfig("minmax"))


def captured(name: str) -> tuple[Program, Tensor]:
    if name in NETWORKS:
        make, shape = NETWORKS[name]
        model = make()
    else:
        model, shape = randomise(getattr(tiny, name)()), tiny.SHAPES[name][1:]
    images = batch(shape, 4 if name == "mobilenet" else 12)
    return capture(model, (images[:1],), name=name), images


def outputs(module: nn.Module, images: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [y.numpy() for y in torch.utils._pytree.tree_leaves(module(images))]


@pytest.mark.parametrize("name", [*NETWORKS, *(n for n in tiny.SHAPES if "fashion" not in n)])
def test_integers_follow_simulation_and_float(name):
    program, images, quantized = minmax(name)
    assert check_each_operator(quantized, images) >= len(quantized.graph.operators) // 2
    rows = value_fidelity(quantized, images)
    assert np.mean([row.within_one_step for row in rows]) > 0.99
    assert max(row.furthest_steps for row in rows) <= 3
    for found, wanted in zip(quantized(images), outputs(program.module, images), strict=True):
        assert found.shape == wanted.shape
        assert snr_db(wanted, found) > 30


def test_every_kind_of_operator_is_there():
    kinds = {operator.kind for name in NETWORKS for operator in minmax(name)[2].graph.operators}
    assert kinds == {
        *("conv2d", "linear", "add", "mul", "max_pool", "avg_pool", "mean", "concat", "pad"),
        *("reshape", "transpose", "lookup", "prelu", "softmax", "requantize"),
    }


def test_methods_of_calibration():
    program, images = captured("fashion_ds_cnn")
    images = images**3  # a few values far from the others
    made = {name: quantize_program(program, images, config) for name, config in CONFIGS.items()}
    scales = {name: q.graph.by_name[q.graph.inputs[0]].scale for name, q in made.items()}
    assert max(scales.values()) == scales["minmax"] > 1.2 * scales["percentile"]
    errors = {
        name: np.square(q.real(q.integers(images)[0], q.graph.inputs[0]) - images.numpy()).mean()
        for name, q in made.items()
    }
    assert errors["mse"] <= 1.02 * min(errors.values())
    (wanted,) = outputs(program.module, images)
    assert min(snr_db(wanted, q(images)[0]) for q in made.values()) > 20


def test_equalisation_keeps_the_function_and_saves_bad_channels():
    program, images = captured("fashion_resnet8")
    with torch.no_grad():  # one channel in a thousand of a tensor's range
        spread = torch.logspace(-2, 1, 16)
        program.module.get_parameter("blocks.0.body.0.weight").mul_(spread[:, None, None, None])
        norm = "blocks.0.body.1."
        program.module.get_buffer(norm + "running_mean").mul_(spread)
        program.module.get_parameter(norm + "weight").mul_(spread)
        program.module.get_parameter(norm + "bias").mul_(spread)
        program.module.get_buffer(norm + "running_var").mul_(spread**2)
        program.module.get_parameter("blocks.0.body.3.weight").div_(spread[None, :, None, None])
    (wanted,) = outputs(program.module, images)
    plain = quantize_program(program, images, QuantConfig("minmax"))
    better = quantize_program(program, images, QuantConfig("minmax", equalise=True))
    (same,) = outputs(better.folded.module, images)
    assert snr_db(wanted, same) > 90
    gained = snr_db(wanted, better(images)[0]) - snr_db(wanted, plain(images)[0])
    assert gained > 3, gained


def test_bias_correction_brings_the_mean_back_and_changes_no_model():
    program, images = captured("fashion_ds_cnn")
    before = {k: v.clone() for k, v in program.module.state_dict().items()}
    means = []
    for correct in (False, True):
        quantized = quantize_program(program, images, QuantConfig(correct_bias=correct))
        (rounded,) = outputs(quantized.simulation(), images)
        (wanted,) = outputs(program.module, images)
        means.append(np.abs((rounded - wanted).mean(0)).mean())
    assert means[1] < 0.5 * means[0]
    assert all(torch.equal(v, before[k]) for k, v in program.module.state_dict().items())


@pytest.mark.slow
def test_pruned_networks_are_quantized():
    images = batch((3, 20, 20))
    program = capture(small_net(), (images[:1],))
    result = hwprune.prune(program, params="50%", recover="none")
    dense, pruned = (quantize_program(p, images) for p in (program, result.program))
    sizes = [q.graph.summary()["constant_bytes"] for q in (dense, pruned)]
    assert sizes[1] < 0.8 * sizes[0]
    (wanted,) = outputs(result.module, images)
    assert snr_db(wanted, pruned(images)[0]) > 25


def test_a_fixed_batch_is_calibrated_one_by_one():
    program, images = captured("autoencoder")
    fixed = replace(program, dynamic_batch=False)
    free, bound = (quantize_program(p, images) for p in (program, fixed))
    assert np.array_equal(free(images)[0], bound(images)[0])


def test_only_float32_networks():
    images = batch((4,)).double()
    program = capture(nn.Linear(4, 2).double(), (images[:1],))
    with pytest.raises(HwpruneError, match=r"only float32 networks can be quantized.*float64"):
        quantize_program(program, images)


def test_arithmetic_by_feature_is_named_or_runs_in_float():
    images = batch((4,))
    program = capture(nn.BatchNorm1d(4).eval(), (images[:1],))
    program.module.get_buffer("running_mean").copy_(torch.arange(4.0))
    with pytest.raises(LoweringError, match="arithmetic with a constant for each feature"):
        quantize_program(program, images)
    quantized = quantize_program(program, images, QuantConfig(float_fallback=True))
    assert [op.kind for op in quantized.graph.operators] == ["dequantize", "float", "quantize"]
    assert snr_db(outputs(program.module, images)[0], quantized(images)[0]) > 35


def test_arithmetic_with_one_number_is_a_table():
    images = batch((4,))
    program = capture(nn.BatchNorm1d(4).eval(), (images[:1],))
    program.module.get_buffer("running_mean").fill_(-3.0)
    quantized = quantize_program(program, images)
    assert [op.kind for op in quantized.graph.operators] == ["lookup"]
    assert snr_db(outputs(program.module, images)[0], quantized(images)[0]) > 35


def toy() -> tuple[Quantized, nn.Module, list[tuple[Tensor]]]:
    """A small network whose values are quantized far too coarsely, and inputs."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)]
    net = nn.Sequential(*layers).eval()
    images = batch((1, 6, 6), 192)
    wild = images.clone()
    wild[0, 0] = 150.0
    program = capture(net, (images[:1],))
    quantized = quantize_program(program, wild, QuantConfig("minmax"))
    return quantized, net, [(x,) for x in images.split(32)]


def test_tuning_learns_to_live_with_rounding(tmp_path):
    quantized, net, batches = toy()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    config = TrainConfig(epochs=12, lr=0.1, weight_decay=0.0, distill=1.0, temperature=1.0)
    tuned, result = tune(
        quantized, batches, 6, config, teacher=net, checkpoint=tmp_path / "tuned.pt"
    )
    assert result.losses[-1] < 0.8 * result.losses[0]
    images = torch.cat([x for (x,) in batches])
    (wanted,) = outputs(net, images)
    snr = [snr_db(wanted, q(images)[0]) for q in (quantized, tuned)]
    assert snr[1] > snr[0] + 0.5, snr
    assert tuned.scheme == quantized.scheme
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    check_each_operator(tuned, images[:32])


class Odd(nn.Module):
    """A sine may be a table; a cumulative sum may not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(self.conv(x)).cumsum(1)
        return F.relu(y.chunk(2, 1)[1])


def test_what_has_no_kernel_is_named_or_runs_in_float():
    images = batch((3, 6, 6))
    program = capture(Odd().eval(), (images[:1],))
    wanted = r"test_quantize\.py:\d+.*: no int8 kernel for aten\.cumsum \(nor for aten\.chunk\)"
    with pytest.raises(LoweringError, match=wanted) as caught:
        quantize_program(program, images)
    assert "--float-fallback" in str(caught.value)
    quantized = quantize_program(program, images, QuantConfig(float_fallback=True))
    kinds = [operator.kind for operator in quantized.graph.operators]
    assert kinds.count("float") == 2
    assert {"dequantize", "quantize", "transpose"} <= set(kinds)
    (wanted_values,) = outputs(program.module, images)
    assert snr_db(wanted_values, quantized(images)[0]) > 30
    trained = quantized.with_weights(quantized.simulation())
    assert np.array_equal(trained(images)[0], quantized(images)[0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 3, 20, 20), "all calibration inputs are zero"),
        (torch.ones(4, 3, 20, 21), r"have shape \(4, 3, 20, 21\), the model takes"),
        (torch.ones(0, 3, 20, 20), "there are no calibration inputs"),
        (torch.full((4, 3, 20, 20), float("inf")), "values that are not finite"),
        (torch.ones(4, 3, 20, 20, dtype=torch.int32), "the model takes torch.float32"),
        (torch.full((4, 3, 20, 20), 3e38), "not finite on the calibration data"),
    ],
)
def test_useless_calibration_data_is_one_message(images, message):
    program = capture(small_net(), (batch((3, 20, 20), 1),))
    with pytest.raises(HwpruneError, match=message):
        quantize_program(program, images)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QuantConfig("entropy"), "unknown method 'entropy'"),
        (QuantConfig(percentile=0.0), "percentile: 0.0 is impossible"),
    ],
)
def test_impossible_settings_are_named(config, message):
    program, images = captured("fashion_ds_cnn")
    with pytest.raises(HwpruneError, match=message):
        quantize_program(program, images, config)


def test_accumulators_that_can_overflow_are_refused():
    net = nn.Sequential(nn.Linear(70_000, 2)).eval()
    nn.init.ones_(net[0].weight)
    images = batch((70_000,), 2).abs()
    with pytest.raises(LoweringError, match=r"output channel \d can reach 2\.\d+e\+09.*70000 prod"):
        quantize_program(capture(net, (images[:1],)), images)
    net[0].weight.data[:, ::2] = 0.0
    quantize_program(capture(net, (images[:1],)), images)


def test_dead_channels_keep_their_bias():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU()).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.0, 1e-12, 1.0]).reshape(3, 1, 1, 1))
        net[0].bias.copy_(torch.tensor([0.7, 0.5, 0.1]))
    images = batch((1, 4, 4))
    quantized = quantize_program(capture(net, (images[:1],)), images, QuantConfig("minmax"))
    (found,) = quantized(images)
    scale = quantized.graph.by_name[quantized.graph.outputs[0]].scale
    assert np.abs(found[:, 0] - 0.7).max() < scale
    assert np.abs(found[:, 1] - 0.5).max() < scale


def test_long_softmax_is_refused():
    images = batch((600,))
    program = capture(nn.Softmax(1), (images[:1],))
    with pytest.raises(LoweringError, match="softmax of more than 511 values"):
        quantize_program(program, images)

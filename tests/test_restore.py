import pytest
import torch

from hwprune import restore
from hwprune.restore import Moments


def value(seed: int = 0, count: int = 64) -> torch.Tensor:
    """(count, 5, 4, 4): channel 3 is made of 0 and 1, channel 4 is of its own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, 4, 4, generator=generator) + 1
    x[:, 3] = 2 * x[:, 0] - 0.5 * x[:, 1] + 7
    return x


def moments(dim: int = 1, joint: bool = True, given: torch.Tensor | None = None) -> Moments:
    """Of two batches."""
    found = Moments(dim, joint)
    for part in (value() if given is None else given).split(32):
        found.add(part)
    return found


def test_a_channel_that_others_say_is_restored() -> None:
    fresh = value(seed=1, count=3)
    gone = torch.tensor([3])
    restored = moments().restore(gone)(fresh.index_fill(1, gone, torch.nan))
    assert torch.equal(restored[:, [0, 1, 2, 4]], fresh[:, [0, 1, 2, 4]])
    error = (restored[:, 3] - fresh[:, 3]).square().mean() / fresh[:, 3].var()
    assert float(error) < 1e-3


def test_a_channel_of_its_own_gets_its_mean() -> None:
    found, whole = moments(), value()
    restored = found.restore(torch.tensor([4]))(value(seed=1, count=3))
    assert float(restored[:, 4].std()) < 0.1
    assert float(restored[:, 4].mean()) == pytest.approx(float(whole[:, 4].mean()), abs=0.05)


@pytest.mark.parametrize("how", ["alone", "all gone", "too wide"])
def test_the_mean_without_a_regression(how, monkeypatch) -> None:
    if how == "too wide":
        monkeypatch.setattr(restore, "WIDEST", 4)
    gone = torch.arange(5) if how == "all gone" else torch.tensor([1, 3])
    found = moments(joint=how != "alone")
    fresh = value(seed=1, count=3)
    wanted = fresh.clone()
    wanted[:, gone] = value().mean((0, 2, 3))[gone][:, None, None].expand(-1, 4, 4)
    assert torch.allclose(found.restore(gone)(fresh), wanted, atol=1e-5)


def test_channels_may_be_the_last_dimension() -> None:
    gone, fresh = torch.tensor([3]), value(seed=1, count=3)
    first = moments().restore(gone)(fresh)
    last = moments(3, given=value().movedim(1, 3)).restore(gone)(fresh.movedim(1, 3))
    assert torch.allclose(last.movedim(3, 1), first, atol=1e-5)


def test_a_constant_channel_stays_what_it_is() -> None:
    given = torch.full((8, 3, 2, 2), 5.0)
    restored = moments(given=given).restore(torch.tensor([1]))(torch.zeros(2, 3, 2, 2))
    assert torch.allclose(restored[:, 1], torch.tensor(5.0), atol=1e-3)


def test_positions_beyond_enough_are_left_out(monkeypatch) -> None:
    monkeypatch.setattr(restore, "ROWS", 100)
    found = Moments(1, True)
    found.add(value())  # 1024 positions
    assert found.count == 94  # every eleventh
    restored = found.restore(torch.tensor([3]))(value(seed=1, count=3))
    error = (restored[:, 3] - value(seed=1, count=3)[:, 3]).square().mean()
    assert float(error) < 0.05

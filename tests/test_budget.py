import pytest

from hwprune.budget import LATENCY, MACS, PARAMS, parse_budget
from hwprune.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "resource", "value", "relative"),
    [
        ("8ms", LATENCY, 8000, False),
        ("800us", LATENCY, 800, False),
        ("1.5 s", LATENCY, 1.5e6, False),
        ("50%", LATENCY, 0.5, True),
        (0.5, LATENCY, 0.5, True),
        ("300M", MACS, 3e8, False),
        ("1.2G", MACS, 1.2e9, False),
        ("25k", PARAMS, 25e3, False),
        ("100%", PARAMS, 1.0, True),
    ],
)
def test_reads(text, resource, value, relative) -> None:
    budget = parse_budget(text, resource)
    assert budget.value == pytest.approx(value)
    assert budget.relative is relative


@pytest.mark.parametrize("text", ["", "fast", "120%", "-5ms", "0", "8", "8GB", "5 bananas"])
def test_refuses(text) -> None:
    with pytest.raises(BudgetError):
        parse_budget(text, LATENCY)


def test_none_is_no_budget() -> None:
    assert parse_budget(None, MACS) is None


def test_reads_back_as_written() -> None:
    assert [str(parse_budget(t, MACS)) for t in ("50%", "300M")] == ["50%", "300M"]
    assert str(parse_budget("8ms", LATENCY)) == "8 ms"

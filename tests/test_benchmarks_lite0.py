import io

from rich.console import Console

from benchmarks import common
from benchmarks.lite0_accuracy import BUDGETS, METHODS, ONE_BUDGET, UNIFORM, plan_rows, show
from hwprune.score import CRITERIA


def test_every_criterion_has_a_row_and_some_have_one_at_every_budget() -> None:
    planned = plan_rows(None, None)
    assert len(set(planned)) == len(planned)
    assert {m for m, b in planned if b == ONE_BUDGET} == {*METHODS, *CRITERIA}
    assert {(m, b) for m in METHODS for b in BUDGETS} <= set(planned)
    assert plan_rows([UNIFORM], None) == [(UNIFORM, ONE_BUDGET)]
    assert {b for _, b in plan_rows(None, [0.7])} == {0.7}


def test_the_most_alike_row_of_a_budget_comes_first(monkeypatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(common, "console", Console(file=shown, width=200))
    row = {"budget": 0.6, "macs_share": 0.6, "cosine": 0.5, "labelled": 9, "top1_labelled": 3}
    show(
        [
            row | {"method": "worse", "top1_agreement": 0.1},
            row | {"method": "other", "top1_agreement": 0.5, "budget": 0.5},
            row | {"method": "better", "top1_agreement": 0.2},
        ]
    )
    text = shown.getvalue()
    assert text.index("better") < text.index("worse") < text.index("other")

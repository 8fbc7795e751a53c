"""The language model of llama2.c, on plain nn.Linear layers.

State-dict keys are those of its checkpoints: tok_embeddings, layers.0.attention.wq, ..., norm.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

WIDTH, DEPTH, HEADS, KEY_HEADS, HIDDEN, VOCABULARY = 64, 5, 8, 4, 172, 512


class Attention(nn.Module):
    """Causal attention with fewer key and value heads than query heads, rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.wq = nn.Linear(WIDTH, WIDTH, bias=False)
        self.wk = nn.Linear(WIDTH, KEY_HEADS * size, bias=False)
        self.wv = nn.Linear(WIDTH, KEY_HEADS * size, bias=False)
        self.wo = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q = rotated(self.wq(x).view(batch, length, HEADS, -1).transpose(1, 2), turn)
        k = rotated(self.wk(x).view(batch, length, KEY_HEADS, -1).transpose(1, 2), turn)
        v = self.wv(x).view(batch, length, KEY_HEADS, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(batch, length, WIDTH))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.w3 = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.feed_forward = FeedForward()
        self.attention_norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.ffn_norm = nn.RMSNorm(WIDTH, eps=1e-5)

    def forward(self, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), turn)
        return x + self.feed_forward(self.ffn_norm(x))


class Stories(nn.Module):
    """260 thousand parameters; the output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        half = WIDTH // HEADS // 2
        rates = 10000.0 ** -(torch.arange(half) / half)
        turn = torch.arange(ids.shape[1])[:, None] * rates
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x, turn)
        return F.linear(self.norm(x), self.tok_embeddings.weight)


def rotated(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Pairs (2i, 2i + 1) of every head turned by an angle that grows with the position."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = turn.cos(), turn.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def load_stories(file: Path) -> Stories:
    """The model in evaluation mode with the weights of a safetensors file."""
    net = Stories()
    net.load_state_dict(load_file(file))
    return net.eval()

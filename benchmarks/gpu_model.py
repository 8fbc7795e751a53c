"""A Llama-like model of a billion parameters: what a refresh of the masks is measured against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; the default has the linear layers of a model of a billion parameters."""

    width: int = 2048
    inner: int = 8192
    heads: int = 32
    shared_heads: int = 8
    layers: int = 16
    vocabulary: int = 32768
    sequences: int = 4
    length: int = 2048

    @property
    def tokens(self) -> int:
        """Tokens of a training step."""
        return self.sequences * self.length


SMALL = Shape(64, 128, 4, 2, 2, 128, 1, 16)
"""For tests."""


class Block(nn.Module):
    """Attention with shared key and value heads, and a gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        narrow = shape.width // shape.heads * shape.shared_heads
        self.norms = nn.ModuleList(nn.RMSNorm(shape.width) for _ in range(2))
        self.q, self.o = (nn.Linear(shape.width, shape.width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(shape.width, narrow, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(shape.width, shape.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        size = (*y.shape[:2], -1, self.shape.width // self.shape.heads)
        q, k, v = (part(y).view(size).transpose(1, 2) for part in (self.q, self.k, self.v))
        k, v = (z.repeat_interleave(self.shape.heads // self.shape.shared_heads, 1) for z in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    """Embedding, blocks, head; the head and the embedding are not pruned."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def pruned(self) -> list[torch.Tensor]:
        """The weights of the linear layers of all blocks."""
        return [m.weight.detach() for m in self.blocks.modules() if isinstance(m, nn.Linear)]


class Step:
    """A training step in bfloat16: forward, backward, AdamW."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        torch.manual_seed(0)
        with device:
            self.model = Model(shape).bfloat16()
            self.tokens = torch.randint(shape.vocabulary, (shape.sequences, shape.length))
        fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=fused)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def __call__(self) -> None:
        logits = self.model(self.tokens)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), self.tokens.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

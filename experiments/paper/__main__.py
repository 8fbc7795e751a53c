"""python -m experiments.paper."""

from __future__ import annotations

from experiments.paper.run import main

main()

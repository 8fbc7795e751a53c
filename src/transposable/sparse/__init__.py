"""Compressed N:M weights on the CPU: their format, their matmuls, and when these pay."""

from __future__ import annotations

"""Benchmarks: each speed claim of the project is one command (``python -m benchmarks.solve``)."""

"""Networks that the experiments evaluate."""

"""What the toolkit costs, beside its peers, in one run: `python -m benchmarks`."""

"""What Perennial costs and what it is worth, measured; each is `python -m benchmarks.NAME`."""

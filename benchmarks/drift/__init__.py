"""How well drift is told from no drift, and its cause named: `python -m benchmarks.drift`."""

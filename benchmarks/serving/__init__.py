"""How fast Perennial answers, beside the machine's own limit and beside what one would write otherwise.

See docs/benchmarks.md for what is measured and how to read it.
"""

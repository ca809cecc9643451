"""Training, measured: time to an accuracy beside its peers, few images, the ladder's choice, and what it says.

`python -m benchmarks.training --help` teaches how to run each part.
"""

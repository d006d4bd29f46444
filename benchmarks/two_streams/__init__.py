"""Why the paper's two streams repeat a text and do not answer about it, and what in a model changes that.

python -m benchmarks.two_streams --out benchmarks/results/fidelity/two-streams.json --work DIR [--smoke]
"""

"""Two ways of doing one thing, measured in one run and printed as ratios: `python -m bench.pairs`."""

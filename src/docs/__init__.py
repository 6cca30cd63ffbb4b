"""The documents whose numbers come from `results/metrics/`."""

"""Measurements of speed: each stage against a plain implementation, in one run."""

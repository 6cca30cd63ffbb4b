"""Corpora, splits, the log-mel front-end, and the arrays that they end up in."""

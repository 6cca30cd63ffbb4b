"""Attacks on the network, and what they leave of its accuracy."""

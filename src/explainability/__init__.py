"""Explanations: saliency maps by several methods, their controls, measures and figures."""

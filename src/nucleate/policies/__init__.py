"""Generative models of crystals, their training and their checkpoints."""

"""Stable, unique, novel: what a set of crystals is worth."""

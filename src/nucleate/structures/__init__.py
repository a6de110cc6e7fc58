"""Crystals as structures and as Wyckoff tokens: symmetry, reading, data sets, identity, validity."""

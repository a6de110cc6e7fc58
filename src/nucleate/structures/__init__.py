"""Crystals as structures and as Wyckoff tokens: symmetry, files, data sets, identity."""

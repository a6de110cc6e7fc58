"""Interatomic potentials, relaxation and reference hulls."""

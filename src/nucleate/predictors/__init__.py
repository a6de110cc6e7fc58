"""Predictors of properties: small networks, trained on tables, over a frozen CHGNet."""

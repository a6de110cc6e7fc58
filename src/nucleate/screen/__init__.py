"""The tests between a model and costly properties."""

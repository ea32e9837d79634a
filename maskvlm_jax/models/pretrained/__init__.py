"""Weights of other programs' encoders, read into ours."""

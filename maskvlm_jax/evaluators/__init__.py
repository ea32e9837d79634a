"""Evaluators: each takes a `Predictor` and an `EvaluationSet` and yields (name, value)."""

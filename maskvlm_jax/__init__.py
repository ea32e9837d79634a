"""Masked vision-language models in JAX: pre-training, evaluation and retrieval."""

"""A trained model as a folder that others read: safetensors, transformers, PyTorch, StableHLO."""

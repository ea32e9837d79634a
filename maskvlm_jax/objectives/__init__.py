"""Objectives: one loss of one paper a file.

A file `objectives/<name>.py` holds a class `Objective`, a `base.Objective`, built as `Objective(vlm, **kwargs,
shared=shared, rngs=rngs)` from `config.objectives.<label> = dict(name="<name>", weight=1.0, **kwargs)`. It owns its
heads and reads encodings from the context, never from the encoders.
"""

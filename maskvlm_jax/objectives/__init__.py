"""Objectives: one loss of one paper a file.

A file `objectives/<name>.py` holds a class `Objective(nnx.Module)`, built as `Objective(vlm, **kwargs, rngs=rngs)` from
`config.objectives.<label> = dict(name="<name>", weight=1.0, **kwargs)`. It owns its heads, declares the views it reads
in `views`, and is called as `objective(ctx, key) -> (loss_B, metrics)`: one loss an example, whose mean over the batch
is the loss, and a dict of scalars to log.
"""

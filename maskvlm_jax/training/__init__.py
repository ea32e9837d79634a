"""From a config to a trained model: build, step, loop, checkpoints, and the scores behind it."""

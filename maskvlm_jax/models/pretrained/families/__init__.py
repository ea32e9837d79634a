"""Families of encoders: what their files call what ours have; see `base`."""

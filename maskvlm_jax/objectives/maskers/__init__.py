"""Maskers: what is hidden is chosen on the device, by what the teacher sees; see `base`."""

"""Kinds of blocks, one a file, named by the key `kind` of a part of `config.model`.

A file `blocks/<kind>.py`, or any other that is named by its path, holds a class `Block`, and a class `CrossBlock` where
cross-modality encoders are to be made of it. `base.py` says what they are.
"""

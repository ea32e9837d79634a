"""Fields: what is made of an example, one file a kind of field; see `base`."""

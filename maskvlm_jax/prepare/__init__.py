"""A set looked at, checked and packed into shards."""

"""Sets on disk, one file a kind, and how a config opens them."""

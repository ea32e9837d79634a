"""Generated pictures with captions that are true of them."""

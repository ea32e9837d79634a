"""Pictures of one's own, found by words or by other pictures."""

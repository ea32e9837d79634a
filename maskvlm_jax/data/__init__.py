"""From files to batches: sources, tokens, masks, the stream, and the sets that evaluation reads."""

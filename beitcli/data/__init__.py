"""Images on their way in: sources (bytes) -> decode (RGB) -> views (arrays) -> loader (batches)."""

"""`beit pack`: DATA as shards that are ready to train from."""

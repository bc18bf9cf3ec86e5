"""Order of the images, batches, and the worker processes that load them."""

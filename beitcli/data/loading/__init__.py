"""Sampling order, batches, and the worker processes that load them."""

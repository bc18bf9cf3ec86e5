"""Transforms from a decoded image to a model's input: crop, resize, flip, colour jitter."""

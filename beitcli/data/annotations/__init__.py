"""Annotations of images: boxes, label maps, instance masks."""

"""Tests of what Pillow alone gets wrong."""

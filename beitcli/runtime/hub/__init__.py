"""Hugging Face hub: downloads of files and byte ranges, and their cache."""

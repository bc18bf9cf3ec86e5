"""Segmentation and detection heads, one file each, and their building blocks."""

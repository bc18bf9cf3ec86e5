"""What stands over the backbone: segmentation and detection heads, a file each, and what they are made of."""

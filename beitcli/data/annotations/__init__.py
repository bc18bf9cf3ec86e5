"""What is known of an image besides its pixels: boxes, label maps, instance masks."""

"""What Pillow alone gets wrong, by file format, and the reasons why an image cannot be used."""

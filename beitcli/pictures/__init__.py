"""Drawing with Pillow and numpy. Functions return images; nothing is saved or printed here."""

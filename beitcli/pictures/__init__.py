"""Pictures for a person: Pillow and numpy in, Pillow out; nothing is saved or printed here."""

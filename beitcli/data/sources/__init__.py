"""DATA references to images: what the references name, the formats they are kept in, their splits."""

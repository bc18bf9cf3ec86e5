"""The Hugging Face hub: files, ranges of files, their cache."""

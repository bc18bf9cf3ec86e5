"""Tokenizer kinds that `train-tokenizer` can train, one module each, which defines `KIND`; --kind is its name."""

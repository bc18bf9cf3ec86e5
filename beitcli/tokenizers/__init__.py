"""Visual tokenizers: the protocol (`base`), the registry (`open`), a kind a file."""

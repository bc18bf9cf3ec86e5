"""The kinds of tokenizer that `train-tokenizer` makes: a file each, with its `KIND`; --kind takes the file's name."""

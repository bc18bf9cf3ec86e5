"""Visual tokenizers. A new one is one new file, here or in an installed package:

- One that is trained here is `kinds/NAME.py` with its `KIND` (`TokenizerKind` in `kind.py`):
  1. a `TokenizerModel` (`base.py`): `vocab_size`, `downsample`, `encode`, and `decode` where it makes pictures;
  2. an `Objective`: `loss`, and where it needs them schedules, seeds, metrics of held-out images;
  3. `architecture` from settings to plain values, `build` from those to the network; a dataclass of its own settings.
  `train-tokenizer --kind NAME` trains it, and all that takes a TOKENIZER opens its runs.
- One that others trained is `pretrained/NAME.py` with its `TOKENIZER` (`PretrainedTokenizer`): which references it
  recognizes, how it opens them, and what `inspect` says of them. `--tokenizer NAME` is its word.

A package names its module under the entry points `beitcli.tokenizers.kinds` or `beitcli.tokenizers.pretrained`.
"""

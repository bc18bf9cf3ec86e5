"""Visual tokenizers. A new tokenizer is one new file, here or in an installed package:

- A tokenizer that is trained here: `kinds/NAME.py` defines `KIND` (`TokenizerKind` in `kind.py`):
  1. a `TokenizerModel` (`base.py`): `vocab_size`, `downsample`, `encode`, and `decode` if it can reconstruct images;
  2. an `Objective`: `loss`, and if needed schedules, seeds and metrics on held-out images;
  3. `architecture` from settings to plain values, `build` from those to the network; a dataclass of its own settings.
  `train-tokenizer --kind NAME` trains it, and every command with a TOKENIZER opens its runs.
- A pretrained tokenizer of another project: `pretrained/NAME.py` defines `TOKENIZER` (`PretrainedTokenizer`): which
  references it recognizes, how it opens them, and what `inspect` reports. `--tokenizer NAME` selects it, unless the
  module says `IS_WORD = False`.

A package declares its module under the entry-point group `beitcli.tokenizers.kinds` or `beitcli.tokenizers.pretrained`.
"""

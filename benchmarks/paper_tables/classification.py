"""Table 1: classifiers of small photographs by their start, with few and with many labels; probes."""

from __future__ import annotations

from paper_tables.comparison import Claim
from paper_tables.tables import Column, Row, Table

_FINETUNED = ("scratch", "scratch-longer", "beit", "longer", "pixels", "beitv2")
_PROBED = ("untrained", "beit", "longer", "pixels", "beitv2")

TABLE = Table(
    title="Table 1: is pretraining better than scratch?",
    about="Tiny ImageNet, 100 classes. All rows: the same images, steps, size and augmentation; of two learning rates "
    "each row takes the one that is better on a shard of training images kept apart, chosen with seed 0. "
    "`beitv2`'s tokenizer learns from a classifier of the same labels, which the other rows do not see.",
    starts=(
        Row("scratch", "random weights", "81.8 (DeiT-B)"),
        Row("scratch-longer", "the steps of pretraining and finetuning together", "none"),
        Row("untrained", "random weights, frozen", "none"),
        Row("beit", "BEiT", "83.2 (BEiT-B, 800 epochs)"),
        Row("longer", "BEiT, twice the steps of pretraining", "83.19 against 82.86 (Table 4)"),
        Row("pixels", "pixels in place of tokens", "81.04 against 82.86 (Table 4)"),
        Row("beitv2", "VQ-KD's tokens, patch aggregation", "not in this paper"),
    ),
    columns=(
        Column("top-1, few labels", "few", "top1", _FINETUNED),
        Column("top-1, many labels", "many", "top1", _FINETUNED),
        Column("kNN", "knn", "top1", _PROBED, reference="untrained", is_claimed=False),
        Column("linear", "linear", "top1", _PROBED, reference="untrained", is_claimed=False),
    ),
    reference="scratch",
    claims=(
        Claim("Pretraining is better than scratch", "beit", "scratch", {"many": 1.4}),
        Claim("Pretraining is better than scratch with all its steps", "beit", "scratch-longer"),
        Claim("Pretraining longer is better", "longer", "beit", {"many": 0.33}),
        Claim("Tokens are better than pixels", "beit", "pixels", {"many": 1.82}),
        Claim("BEiT v2 is better than BEiT", "beitv2", "beit"),
    ),
    paper="ImageNet-1k top-1",
    notes=("kNN and linear are compared with `untrained`. The paper's Table 1 has no probes.",),
)

"""Table 1: classifiers of small photographs by their start, with few and with many labels; probes."""

from __future__ import annotations

from paper_tables.columns import Column
from paper_tables.comparison import Claim
from paper_tables.tables import Row, Table

_FINETUNED = ("scratch", "scratch-longer", "beit", "longer", "pixels", "beitv2")
_PROBED = ("untrained", "beit", "longer", "pixels", "beitv2")

TABLE = Table(
    title="Table 1: is pretraining better than scratch?",
    about="Tiny ImageNet, 100 classes, 64-pixel photographs cut to {b.image_size} pixels; {b.few:,} and {b.many:,} "
    "labels. All rows: the same images, size and augmentation, and the same steps but for `longer` and "
    "`scratch-longer`. Of two learning rates each row takes the one that measured more with few labels on "
    "{b.measured:,} images of a shard of training images kept apart, with seed 0, after {b.search_steps} steps "
    "(`scratch-longer`: {b.scratch_longer_steps}, all of its own); with many labels it has the same rate, not "
    "searched again. Layer decay is 1.0 for random weights and 0.75, the recipe's, for pretrained ones.",
    starts=(
        Row("scratch", "random weights", "81.8 (DeiT-B)"),
        Row("scratch-longer", "random weights, the steps of pretraining added", "none"),
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
        Claim("Pretraining is better than scratch with the steps of pretraining added", "beit", "scratch-longer"),
        Claim("BEiT v2 is better than BEiT", "beitv2", "beit", stages=("many",)),
    ),
    paper="ImageNet-1k top-1",
    notes=(
        "kNN and linear are compared with `untrained`. The paper's Table 1 has no probes. Longer pretraining and "
        "pixels are claims of Table 4.",
        "`beitv2`'s tokenizer learns from a classifier of many labels, so with few labels, and in its probes, it has "
        "seen labels that the other rows have not; it is claimed with many labels alone.",
        "`scratch-longer` has {b.pretrain_steps:,} steps more than `scratch`, those of pretraining; the tokenizer's "
        "{b.tokenizer_steps:,} steps of 16 images are not made up for.",
    ),
)

"""Table 3: segmenters of street scenes by their start; does finetuning on labels in between help?"""

from __future__ import annotations

from paper_tables.columns import Column
from paper_tables.comparison import Claim
from paper_tables.tables import Row, Table

TABLE = Table(
    title="Table 3: does pretraining help segmentation, and finetuning in between?",
    about="CamVid, 367 images to learn from and 101 to measure on, 11 classes. All rows: the same images, UPerNet "
    "head, size and steps of segmentation. Of two learning rates each row takes the one that measured more on every "
    "eighth training image, kept apart, with seed 0 after {b.segment_search_steps} steps: those frames nearly repeat "
    "their neighbours, which are trained on, so they serve for the choice of the rate only, and 45 of them do not "
    "tell near rates apart. Layer decay is 1.0 for random weights and 0.75, the recipe's, for the other starts.",
    starts=(
        Row("scratch", "random weights", "none"),
        Row("supervised", "a classifier of Tiny ImageNet, from scratch", "45.3"),
        Row("beit", "BEiT", "45.6"),
        Row("intermediate", "BEiT, finetuned on Tiny ImageNet", "47.7"),
    ),
    columns=(Column("mIoU", "segment", "miou"),),
    reference="scratch",
    claims=(
        Claim("Pretraining is better than scratch", "beit", "scratch"),
        Claim("Pretraining is better than supervised training", "beit", "supervised", {"segment": 0.3}),
        Claim("Finetuning on labels in between helps", "intermediate", "beit", {"segment": 2.1}),
    ),
    paper="ADE20K mIoU",
    notes=(
        "Before segmentation the starts have other work behind them: `supervised` {b.many_steps:,} steps with labels, "
        "`beit` {b.pretrain_steps:,} without and its tokenizer's {b.tokenizer_steps:,} of 16 images, `intermediate` "
        "all of these. In the paper supervised training has its whole schedule.",
        "The paper's other start, DINO, has 44.1; it is not run here.",
    ),
)

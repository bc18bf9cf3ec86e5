"""Table 3: segmenters of street scenes by their start; does finetuning on labels in between help?"""

from __future__ import annotations

from paper_tables.comparison import Claim
from paper_tables.tables import Column, Row, Table

TABLE = Table(
    title="Table 3: does pretraining help segmentation, and finetuning in between?",
    about="CamVid, 367 images to learn from and 101 to measure on, 11 classes. All rows: the same images, steps, size "
    "and UPerNet head; of two learning rates each row takes the one that is better on every eighth training image, "
    "kept apart, chosen with seed 0.",
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
    notes=("The paper's other start, DINO, has 44.1; it is not run here.",),
)

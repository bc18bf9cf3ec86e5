"""Table 4: what of BEiT's pretraining matters; a classifier and a segmenter of each variant."""

from __future__ import annotations

from paper_tables.columns import Column
from paper_tables.comparison import Claim
from paper_tables.tables import Row, Table

TABLE = Table(
    title="Table 4: which parts of pretraining matter?",
    about="Each row changes one part of `beit` and keeps images, order, learning rate and, but for `longer`, steps of "
    "pretraining; the classifiers are those of Table 1 with few labels, the segmenters those of Table 3, searches of "
    "the learning rate included.",
    starts=(
        Row("beit", "blocks hidden, their tokens predicted", "82.86 / 44.65"),
        Row("random", "patches hidden at random", "82.77 / 42.93"),
        Row("pixels", "pixels of the hidden patches", "81.04 / 41.38"),
        Row("pixels-random", "pixels, patches hidden at random", "80.50 / 37.09"),
        Row("all", "tokens of all patches predicted", "82.59 / 40.93"),
        Row("no-mask", "none hidden, tokens of all predicted", "81.67 / 36.73"),
        Row("longer", "twice the steps (the paper's: 800 epochs, not 300)", "83.19 / 45.58"),
    ),
    columns=(Column("top-1, few labels", "few", "top1"), Column("mIoU", "segment", "miou")),
    reference="beit",
    claims=(
        Claim("Blocks are better than random patches", "beit", "random", {"few": 0.09, "segment": 1.72}),
        Claim("Tokens are better than pixels", "beit", "pixels", {"few": 1.82, "segment": 3.27}),
        Claim(
            "Blocks are better than random patches for pixels too",
            "pixels",
            "pixels-random",
            {"few": 0.54, "segment": 4.29},
        ),
        Claim("A loss of hidden patches alone is better than of all", "beit", "all", {"few": 0.27, "segment": 3.72}),
        Claim("Hiding patches is better than none", "all", "no-mask", {"few": 0.92, "segment": 4.20}),
        Claim("Pretraining longer is better", "longer", "beit", {"few": 0.33, "segment": 0.93}),
    ),
    paper="ImageNet-1k top-1 / ADE20K mIoU",
)

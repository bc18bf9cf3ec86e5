"""Figure 2: does the attention of a point inside an object separate it? A number, beside the pictures."""

from __future__ import annotations

from paper_tables.columns import Column
from paper_tables.comparison import Claim
from paper_tables.tables import Row, Table

TABLE = Table(
    title="Figure 2: does attention separate objects?",
    about="CamVid's validation images, central squares, a grid of {b.grid} x {b.grid} patches. For a point in each "
    "object (patches of one class that touch): intersection over union of the object and the patches whose attention "
    "is above a threshold; last block, mean of the heads. The threshold is the best one for each object, chosen with "
    "the truth and on that coarse grid: the numbers are upper bounds, to be compared with each other only. `distance` "
    "is the same of nearness to the point, which knows nothing of the image.",
    starts=(
        Row("untrained", "BEiT's shape, random weights", "none"),
        Row("scratch", "a classifier trained from scratch", "none"),
        Row("pixels", "pixels predicted", "none"),
        Row("beit", "BEiT", "none"),
    ),
    columns=(
        Column("IoU", "iou", "iou"),
        Column("`distance`", "iou", "iou_distance", is_claimed=False, is_compared=False),
    ),
    reference="scratch",
    claims=(
        Claim("BEiT's attention separates objects better than a classifier's", "beit", "scratch"),
        Claim("Tokens make attention that separates objects better than pixels do", "beit", "pixels"),
        Claim(
            "BEiT's attention separates objects better than nearness alone", "beit", "beit", worse_column="`distance`"
        ),
    ),
    paper="pictures, no number",
)

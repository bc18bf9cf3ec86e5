"""How position embeddings and bias tables are resized to images of another size (stdlib only).

release    relative position bias tables by a cubic spline over geometric steps, absolute positions bicubic
bilinear   both bilinearly (paper, Table 14)
"""

from __future__ import annotations

from typing import Literal

Resizing = Literal["release", "bilinear"]
DEFAULT: Resizing = "release"

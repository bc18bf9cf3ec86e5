"""torchvision's Mask R-CNN (arXiv 1703.06870): Faster R-CNN with a mask for each object.

masks        torchvision's mask head: 14 x 14 RoIAlign, four convolutions, upsampling x2; 28 x 28 logits per class
"""

from __future__ import annotations

from beitcli.heads.detection.faster_rcnn import LEVELS, FasterRcnn

KEYS = (
    "detection.pyramid.levels.2.0.weight",
    "detection.roi_heads.box_predictor.cls_score.weight",
    "detection.roi_heads.mask_predictor.mask_fcn_logits.weight",
)


class MaskRcnn(FasterRcnn):
    """Faster R-CNN with a mask head, as wide as the pyramid."""

    predicts_masks = True
    foreground_mean_losses = ("loss_mask",)

    def __init__(self, width_in: int, patch_size: int, classes: int, width: int, regions: int) -> None:
        super().__init__(width_in, patch_size, classes, width, regions)
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
        from torchvision.ops import MultiScaleRoIAlign

        self.roi_heads.mask_roi_pool = MultiScaleRoIAlign(list(LEVELS), output_size=14, sampling_ratio=2)
        self.roi_heads.mask_head = MaskRCNNHeads(width, (width,) * 4, dilation=1)
        self.roi_heads.mask_predictor = MaskRCNNPredictor(width, width, classes + 1)


HEAD = MaskRcnn

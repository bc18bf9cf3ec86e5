"""Segmentation heads, one file each (`config.tasks.segment.HEADS`). A file assigns at its top level:

    HEAD        the class, called with the backbone's width, the patch size in pixels and the number of classes
    KEYS        state-dict keys that identify this head in checkpoints that do not declare their head
    CLASSIFIER  key of the tensor with one row per class, if it is not `decode_head.conv_seg.weight`

The last two are literals: they are read without importing the file, so that `beit inspect` needs no torch.
"""

"""Segmentation heads, a file each (`config.tasks.segment.HEADS`). A file assigns at its top level:

    HEAD        the class, called with the backbone's width, the patches' side in pixels and the number of classes
    KEYS        names of tensors that a checkpoint has where this is its head; for those that do not say their head
    CLASSIFIER  name of the tensor with a row a class, where it is not `decode_head.conv_seg.weight`

The last two are literals: they are read without importing the file, so that `beit inspect` needs no torch.
"""

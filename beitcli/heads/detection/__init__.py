"""Detection heads, one file each (`config.tasks.detect.HEADS`). A file assigns at its top level:

    HEAD        the class, a `FasterRcnn` or one with the same interface
    KEYS        state-dict keys that identify this head in checkpoints that do not declare their head
    CLASSIFIER  key of the tensor with one row per class and one for the background, if it is not torchvision's

The last two are literals: they are read without importing the file, so that `beit inspect` needs no torch.
"""

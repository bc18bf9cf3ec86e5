"""Detection heads, a file each (`config.tasks.detect.HEADS`). A file assigns at its top level:

    HEAD        the class, a `FasterRcnn` or what can stand in its place
    KEYS        names of tensors that a checkpoint has where this is its head; for those that do not say their head
    CLASSIFIER  name of the tensor with a row a class and one for the background, where it is not torchvision's

The last two are literals: they are read without importing the file, so that `beit inspect` needs no torch.
"""

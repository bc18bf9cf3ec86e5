"""Networks, and the code that opens a MODEL reference as a checkpoint.

Shapes, here and everywhere: B batch size, C channels, H W pixels, N patches, L = N + 1 (with the class token), D width,
V vocabulary size, M masked patches of a batch.
"""

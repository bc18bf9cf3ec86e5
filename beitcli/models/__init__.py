"""Networks: the backbone with its mask token and heads, and how a MODEL is opened.

Shapes, here and everywhere: B batch, C channels, H W pixels, N patches, L = N + 1 (with the class token), D width,
V vocabulary, M masked patches of a batch.
"""

"""timm BEiT blocks for training: the same results with less computation.

    hidden = hidden + drop_path(gamma_1 * attention(norm1(hidden)))        (B, L, D)
    hidden = hidden + drop_path(gamma_2 * mlp(norm2(hidden)))

- The last block computes only the `rows` that are used: 75 of 197 queries save half of that block.
- On the CPU, a branch that drop path drops for an image is not computed: 5% of the blocks at a rate of 0.1.
- Attention uses the kernel that suits the device (`efficient_attention.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.beit import Beit, Block
from torch import nn

from beitcli.models.networks.efficient_attention import EfficientAttention, gather_rows, relative_bias
from beitcli.models.networks.gelu import GELU
from beitcli.models.networks.patchify import patch_pixels
from beitcli.runtime.compute.attention_choice import AttentionChoice, choose_attention_kernel
from beitcli.runtime.compute.attention_trial import AttentionShape
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.sdpa_backend import FLEX, padded_bias


class EfficientBlock(Block):
    """timm's block, with optional row selection and with the random numbers of drop path as an argument.

    Args:
        block: timm's block; its parameters and submodules are reused under the same names.
    """

    def __init__(self, block: Block) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(vars(block))
        self.attn = EfficientAttention(block.attn)
        if type(self.mlp.act) is nn.GELU:
            self.mlp.act = GELU()

    def forward(
        self,
        hidden: torch.Tensor,
        shared_rel_pos_bias: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes all positions, or only `rows`.

        Args:
            hidden: (B, L, D), fp32 or bf16; the result has the same dtype.
            shared_rel_pos_bias: (heads, L, L), or None.
            rows: (B, R) int64 positions in [0, L); None for all.
            uniforms: (B, 2) numbers in [0, 1) that decide which images drop which branch; None draws them here.

        Returns:
            (B, R or L, D).
        """

        def attention(kept: torch.Tensor | None) -> torch.Tensor:
            seen, queries = _of_images(hidden, kept), None if rows is None else _of_images(rows, kept)
            return self.attn(self.norm1(seen), shared_rel_pos_bias=shared_rel_pos_bias, queries=queries)

        def feed_forward(kept: torch.Tensor | None) -> torch.Tensor:
            return self.mlp(self.norm2(_of_images(middle, kept)))

        first, second = (None, None) if uniforms is None else uniforms.unbind(1)
        middle = hidden if rows is None else gather_rows(hidden, rows)
        middle = _add_branch(middle, attention, self.drop_path1, self.gamma_1, first)
        return _add_branch(middle, feed_forward, self.drop_path2, self.gamma_2, second)


def _of_images(tensor: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return tensor if kept is None else tensor.index_select(0, kept)


def _add_branch(
    hidden: torch.Tensor,
    branch: Callable[[torch.Tensor | None], torch.Tensor],
    drop_path: nn.Module,
    gamma: torch.Tensor | None,
    uniforms: torch.Tensor | None,
) -> torch.Tensor:
    """Returns hidden + drop_path(gamma * branch) in the dtype of `hidden`.

    Args:
        branch: Maps (K,) int64 indices of images, or None for all, to (K, R, D).
        uniforms: (B,) numbers in [0, 1); an image keeps its branch if its number is below 1 - rate. None draws as
            timm's DropPath does.
    """
    rate = getattr(drop_path, "drop_prob", 0.0) if drop_path.training else 0.0
    if not rate:
        return (hidden + _scaled(branch(None), gamma)).to(hidden.dtype)
    keep = 1 - rate
    if uniforms is None:
        is_kept = torch.empty(len(hidden), 1, 1, device=hidden.device).bernoulli_(keep)
    else:
        is_kept = (uniforms < keep).float().view(-1, 1, 1)
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():  # static shapes, no host sync
        return (hidden + _scaled(branch(None), gamma) * (is_kept / keep)).to(hidden.dtype)
    kept = is_kept.flatten().nonzero().squeeze(1)
    if len(kept) == len(hidden):
        return torch.add(hidden, _scaled(branch(None), gamma), alpha=1 / keep).to(hidden.dtype)
    if not len(kept):  # one image with weight 0, so that the branch's parameters get a gradient in every step
        return hidden.index_add(0, kept.new_zeros(1), 0 * _scaled(branch(kept.new_zeros(1)), gamma).to(hidden.dtype))
    return hidden.index_add(0, kept, _scaled(branch(kept), gamma).to(hidden.dtype), alpha=1 / keep)


def _scaled(branch: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
    return branch if gamma is None else gamma * branch


class Backbone(Beit):
    """timm's `Beit` with `EfficientBlock`s; state-dict keys, layout and initialization are timm's.

    Args:
        timm_kwargs: Arguments of timm's `Beit`.

    Attributes:
        residual_dtype: dtype of the residual stream; None follows type promotion, which gives fp32 under autocast.
        pads_bias: Whether the shared bias is padded for the kernels, once per forward pass.
    """

    residual_dtype: torch.dtype | None = None
    pads_bias: bool = False
    blocks: Any  # a ModuleList of EfficientBlock; ModuleList would type its items as nn.Module

    def __init__(self, **timm_kwargs: Any) -> None:
        super().__init__(**timm_kwargs)
        self.blocks = nn.ModuleList(EfficientBlock(block) for block in self.blocks)

    def all_blocks(self) -> list[Any]:
        """Returns every `EfficientBlock` that training computes: `blocks`, and those that a subclass adds."""
        return list(self.blocks)

    def choose_attention(self, images: int, compute: Compute, queries: int | None = None) -> AttentionChoice | None:
        """Benchmarks the attention kernels on a micro-batch and selects the fastest correct one; CUDA only.

        All ranks must call this, before the model is compiled or sharded.

        Args:
            images: Number of images in a micro-batch.
            queries: Rows per image that the last block computes; None for all.

        Returns:
            The choice; None on other devices, where nothing changes.
        """
        if compute.device.type != "cuda":
            return None
        first = self.blocks[0].attn
        has_bias = self.rel_pos_bias is not None or first.relative_position_bias_table is not None
        head_dim = first.qkv.in_features // first.num_heads
        length = self.patch_embed.num_patches + 1
        shape = AttentionShape(images, first.num_heads, length, head_dim, has_bias, queries, len(self.all_blocks()))
        choice = choose_attention_kernel(shape, compute)
        for block in self.all_blocks():
            block.attn.use_flex = choice.kernel == FLEX
        self.pads_bias = True
        return choice

    def shared_bias(self) -> torch.Tensor | None:
        """Returns the bias shared by all blocks, (heads, L, L or more); None if there is no shared bias."""
        if self.rel_pos_bias is None:
            return None
        shared = self.rel_pos_bias
        bias = relative_bias(shared.relative_position_bias_table, shared.relative_position_index)
        return padded_bias(bias) if self.pads_bias else bias

    def run_blocks(
        self, hidden: torch.Tensor, rows: torch.Tensor | None = None, uniforms: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Runs all blocks.

        Args:
            hidden: (B, L, D), the class token and the embedded patches.
            rows: (B, R) int64 positions that the last block computes; None for all.
            uniforms: (B, 2 * depth) numbers in [0, 1) for drop path, two columns per block, so that the result does not
                depend on how a batch is split; None draws them from torch's global generator.

        Returns:
            (B, R or L, D), before the final norm.
        """
        shared_bias = self.shared_bias()
        *first, last = zip(self.blocks, self._block_uniforms(uniforms), strict=True)
        for block, drawn in first:
            hidden = block(hidden, shared_bias, uniforms=drawn)
        return last[0](hidden, shared_bias, rows, last[1])

    def _block_uniforms(self, uniforms: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        """Splits into (B, 2) per block; None for each block if there are none."""
        return [None] * len(self.blocks) if uniforms is None else uniforms.split(2, dim=1)

    def forward_block_outputs(self, images: torch.Tensor, visit: Callable[[int, torch.Tensor], None]) -> None:
        """Calls `visit(layer, output)` after each block: layers from 1, output (B, L, D), one in memory at a time.

        Args:
            images: (B, 3, H, W), normalized.
        """
        hidden = self.embed(self.embed_patches(images))
        shared_bias = self.shared_bias()
        for layer, block in enumerate(self.blocks, start=1):
            hidden = block(hidden, shared_bias)
            visit(layer, hidden)

    def block_outputs(
        self, hidden: torch.Tensor, which: Sequence[int], uniforms: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Returns the outputs of the given blocks, (B, L, D) each, before any norm; later blocks are not computed.

        Args:
            hidden: (B, L, D), the class token and the embedded patches.
            which: Block indices from 0, in any order; may repeat. -1 is `hidden` itself.
            uniforms: As in `run_blocks`.
        """
        shared_bias = self.shared_bias()
        outputs = [hidden]
        for block, drawn in zip(self.blocks[: max(which) + 1], self._block_uniforms(uniforms), strict=False):
            hidden = block(hidden, shared_bias, uniforms=drawn)
            outputs.append(hidden)
        return [outputs[number + 1] for number in which]

    def forward_features(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """Maps normalized images (B, 3, H, W) to (B, L, D); `uniforms` as in `run_blocks`."""
        return self.norm(self.run_blocks(self.embed(self.embed_patches(images)), uniforms=uniforms))

    def forward(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """Maps normalized images (B, 3, H, W) to the output of the head; `uniforms` as in `run_blocks`."""
        return self.forward_head(self.forward_features(images, uniforms))

    def embed_patches(self, images: torch.Tensor) -> torch.Tensor:
        """Maps normalized images (B, 3, H, W) to patch embeddings (B, N, D).

        The convolution of stride P equals one matrix product over (B * N, 3 * P * P). That form is used on a GPU and
        under torch.compile, where color jitter and normalization fuse into its input; eager CPU code uses the Conv2d.
        """
        embed = self.patch_embed
        if images.device.type == "cpu" and not torch.compiler.is_compiling():
            return embed(images)
        return F.linear(patch_pixels(images, embed.patch_size[0]), embed.proj.weight.flatten(1), embed.proj.bias)

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        """Adds class token and position embeddings: (B, N, D) -> (B, L, D)."""
        hidden = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        hidden = hidden if self.pos_embed is None else hidden + self.pos_embed
        return hidden if self.residual_dtype is None else hidden.to(self.residual_dtype)

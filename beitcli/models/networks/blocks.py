"""The arithmetic of a timm `Beit`'s blocks where it is trained: the same numbers from less work.

    hidden = hidden + drop_path(gamma_1 * attention(norm1(hidden)))        (B, L, D)
    hidden = hidden + drop_path(gamma_2 * mlp(norm2(hidden)))

- Only `rows` of the last block are computed where only they are read: 75 of 197 queries save half of that block.
- A branch that drop path strikes out for an image is not computed for it on a CPU: 5% of the blocks at a rate of 0.1.
- Attention takes the kernel that suits the device (`trained_attention.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.beit import Beit, Block
from torch import nn

from beitcli.models.networks.patchify import patch_pixels
from beitcli.models.networks.trained_attention import TrainedAttention, take_rows
from beitcli.runtime.compute.attention_choice import AttentionChoice, choose_attention_kernel
from beitcli.runtime.compute.attention_trial import AttentionShape
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.sdpa_backend import FLEX, padded_bias


class TrainedBlock(Block):
    """timm's block that can compute some positions only, and takes the random numbers of its drop paths.

    Args:
        block: timm's, whose parameters and sub-modules it takes over with their names.
    """

    def __init__(self, block: Block) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(vars(block))
        self.attn = TrainedAttention(block.attn)

    def forward(
        self,
        hidden: torch.Tensor,
        shared_rel_pos_bias: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All positions, or (B, R) `rows` alone.

        Args:
            hidden: (B, L, D), fp32 or bf16; what is returned has the same dtype.
            shared_rel_pos_bias: (heads, L, L), or None.
            rows: (B, R) int64 positions in [0, L).
            uniforms: (B, 2) numbers in [0, 1) that decide which images' branches are dropped; None draws them here.

        Returns:
            (B, R or L, D).
        """

        def attention(kept: torch.Tensor | None) -> torch.Tensor:
            seen, queries = _of_images(hidden, kept), None if rows is None else _of_images(rows, kept)
            return self.attn(self.norm1(seen), shared_rel_pos_bias=shared_rel_pos_bias, queries=queries)

        def feed_forward(kept: torch.Tensor | None) -> torch.Tensor:
            return self.mlp(self.norm2(_of_images(middle, kept)))

        first, second = (None, None) if uniforms is None else uniforms.unbind(1)
        middle = hidden if rows is None else take_rows(hidden, rows)
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
    """hidden + drop_path(gamma * branch), in the dtype of `hidden`; without `uniforms` with those of timm's DropPath.

    Args:
        branch: Of (K,) int64 images of the batch, or of all for None, to (K, R, D).
        uniforms: (B,) numbers in [0, 1); an image keeps its branch where its number is below 1 - rate.
    """
    rate = getattr(drop_path, "drop_prob", 0.0) if drop_path.training else 0.0
    if not rate:
        return (hidden + _scaled(branch(None), gamma)).to(hidden.dtype)
    keep = 1 - rate
    if uniforms is None:
        is_kept = torch.empty(len(hidden), 1, 1, device=hidden.device).bernoulli_(keep)
    else:
        is_kept = (uniforms < keep).float().view(-1, 1, 1)
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():  # static shapes, and the host waits for nothing
        return (hidden + _scaled(branch(None), gamma) * (is_kept / keep)).to(hidden.dtype)
    kept = is_kept.flatten().nonzero().squeeze(1)
    if len(kept) == len(hidden):
        return torch.add(hidden, _scaled(branch(None), gamma), alpha=1 / keep).to(hidden.dtype)
    if not len(kept):  # one image of weight 0, so that the branch's parameters have a gradient in every step
        return hidden.index_add(0, kept.new_zeros(1), 0 * _scaled(branch(kept.new_zeros(1)), gamma).to(hidden.dtype))
    return hidden.index_add(0, kept, _scaled(branch(kept), gamma).to(hidden.dtype), alpha=1 / keep)


def _scaled(branch: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
    return branch if gamma is None else gamma * branch


class Backbone(Beit):
    """timm's `Beit` with these blocks: names, layout and initialisation are timm's.

    Args:
        of_timm: Arguments of timm's `Beit`.

    Attributes:
        residual_dtype: Of the residual stream; None leaves it to the arithmetic, which is fp32 under autocast.
        pads_bias: Whether the bias that blocks share is padded for the kernels, once a forward pass.
    """

    residual_dtype: torch.dtype | None = None
    pads_bias: bool = False
    blocks: Any  # a ModuleList of TrainedBlock, whose items it would type as modules of any kind

    def __init__(self, **of_timm: Any) -> None:
        super().__init__(**of_timm)
        self.blocks = nn.ModuleList(TrainedBlock(block) for block in self.blocks)

    def choose_attention(self, images: int, compute: Compute, queries: int | None = None) -> AttentionChoice | None:
        """Tries attention kernels on a micro-batch, and trains with the fastest that is right; CUDA only.

        All processes must call it, before the model is compiled or sharded.

        Args:
            images: Of a micro-batch.
            queries: Rows that the last block computes of each image; None for all.

        Returns:
            None off CUDA, where nothing changes.
        """
        if compute.device.type != "cuda":
            return None
        first = self.blocks[0].attn
        has_bias = self.rel_pos_bias is not None or first.relative_position_bias_table is not None
        head_dim = first.qkv.in_features // first.num_heads
        length = self.patch_embed.num_patches + 1
        shape = AttentionShape(images, first.num_heads, length, head_dim, has_bias, queries, len(self.blocks))
        choice = choose_attention_kernel(shape, compute)
        for block in self.blocks:
            block.attn.use_flex = choice.kernel == FLEX
        self.pads_bias = True
        return choice

    def shared_bias(self) -> torch.Tensor | None:
        """(heads, L, L or more), of all blocks; None where each has its own, or none."""
        if self.rel_pos_bias is None:
            return None
        return padded_bias(self.rel_pos_bias()) if self.pads_bias else self.rel_pos_bias()

    def run_blocks(
        self, hidden: torch.Tensor, rows: torch.Tensor | None = None, uniforms: torch.Tensor | None = None
    ) -> torch.Tensor:
        """All blocks; of the last one only (B, R) `rows` where given.

        Args:
            hidden: (B, L, D), the embedded patches behind the class token.
            uniforms: (B, 2 * depth) numbers in [0, 1) for the drop paths, two columns a block; None takes them from
                torch's global generator. Given, they do not depend on how a batch is divided.

        Returns:
            (B, R or L, D), before the last norm.
        """
        shared_bias = self.shared_bias()
        *first, last = zip(self.blocks, self._block_uniforms(uniforms), strict=True)
        for block, drawn in first:
            hidden = block(hidden, shared_bias, uniforms=drawn)
        return last[0](hidden, shared_bias, rows, last[1])

    def _block_uniforms(self, uniforms: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        """(B, 2) for each block, or None."""
        return [None] * len(self.blocks) if uniforms is None else uniforms.split(2, dim=1)

    def forward_block_outputs(self, images: torch.Tensor, visit: Callable[[int, torch.Tensor], None]) -> None:
        """Shows (layer, (B, L, D)) behind each block, layers from 1; only one block's output is held at a time.

        Args:
            images: (B, 3, H, W), normalised.
        """
        hidden = self.embed(self.embed_patches(images))
        shared_bias = self.shared_bias()
        for layer, block in enumerate(self.blocks, start=1):
            hidden = block(hidden, shared_bias)
            visit(layer, hidden)

    def block_outputs(
        self, hidden: torch.Tensor, which: Sequence[int], uniforms: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """The outputs of some blocks, (B, L, D) each, unnormed; blocks beyond the last of them are not computed.

        Args:
            hidden: (B, L, D), the embedded patches behind the class token.
            which: Blocks from 0, ascending; one may stand there twice.
            uniforms: As of `run_blocks`.
        """
        shared_bias = self.shared_bias()
        outputs = []
        for block, drawn in zip(self.blocks[: which[-1] + 1], self._block_uniforms(uniforms), strict=False):
            hidden = block(hidden, shared_bias, uniforms=drawn)
            outputs.append(hidden)
        return [outputs[number] for number in which]

    def forward_features(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 3, H, W), normalised, to (B, L, D); `uniforms` as of `run_blocks`."""
        return self.norm(self.run_blocks(self.embed(self.embed_patches(images)), uniforms=uniforms))

    def forward(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 3, H, W), normalised, to the head's output; `uniforms` as of `run_blocks`."""
        return self.forward_head(self.forward_features(images, uniforms))

    def embed_patches(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), normalised, to (B, N, D).

        The convolution of stride P is one matrix product over (B * N, 3 * P * P). It is written so where the step is
        compiled or on a GPU, where colour and normalisation fuse into its input; elsewhere torch's convolution stays.
        """
        embed = self.patch_embed
        if images.device.type == "cpu" and not torch.compiler.is_compiling():
            return embed(images)
        return F.linear(patch_pixels(images, embed.patch_size[0]), embed.proj.weight.flatten(1), embed.proj.bias)

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, N, D) patches to (B, L, D), class token and positions added."""
        hidden = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        hidden = hidden if self.pos_embed is None else hidden + self.pos_embed
        return hidden if self.residual_dtype is None else hidden.to(self.residual_dtype)

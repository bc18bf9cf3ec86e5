"""Checkpoints in the formats of other libraries, written by these with random weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models.beit import Beit, Block, gen_relative_position_index
from torch import nn

transformers.utils.logging.disable_progress_bar()

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "image_size": 64,
    "vocab_size": 64,
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.0,
}
SHARED = {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True, "init_values": 0.1}  # the release's pretraining
PER_BLOCK = {
    "img_size": 64,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "num_classes": 3,
    "use_abs_pos_emb": False,
    "use_rel_pos_bias": True,
}

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
VITS: dict[str, dict[str, int]] = {
    "vit_small_patch16_224": SMALL_VIT,
    "deit_tiny_distilled_patch16_224": SMALL_VIT,  # a second token and a second head
    "deit3_small_patch16_224": SMALL_VIT,  # LayerScale, positions without the class token
    "vit_base_patch16_siglip_224": SMALL_VIT,  # no class token, attention pooling
    "eva02_tiny_patch14_224": SMALL_VIT | {"depth": 2, "num_heads": 3},  # SwiGLU, rotary positions
}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Reinitializes every parameter at random, so that none is constant zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "before.weight", "after.weight")):
                parameter.add_(1.0)
    return model.eval()


def hf_masked(folder: Path, **settings: object) -> transformers.BeitForMaskedImageModeling:
    """Saves a `transformers.BeitForMaskedImageModeling`."""
    config = transformers.BeitConfig(**SMALL | {"use_mask_token": True} | settings)
    model = randomized(transformers.BeitForMaskedImageModeling(config))
    model.save_pretrained(folder)
    return model


def hf_classifier(folder: Path, **settings: object) -> transformers.BeitForImageClassification:
    names = dict(enumerate(["blue", "green", "red"]))
    config = transformers.BeitConfig(**SMALL | {"use_relative_position_bias": True, "id2label": names} | settings)
    model = randomized(transformers.BeitForImageClassification(config))
    model.save_pretrained(folder)
    return model


def hf_backbone(folder: Path, **settings: object) -> transformers.BeitModel:
    config = transformers.BeitConfig(**SMALL | {"use_relative_position_bias": True} | settings)
    config._attn_implementation = "eager"
    model = randomized(transformers.BeitModel(config))
    model.save_pretrained(folder)
    return model


Theirs = transformers.BeitForSemanticSegmentation | transformers.Data2VecVisionForSemanticSegmentation


def hf_segmenter(
    folder: Path,
    labels: int,
    kind: type[Theirs] = transformers.BeitForSemanticSegmentation,
    **settings: object,
) -> Theirs:
    """Saves a segmenter of transformers with random weights; by default 4 blocks."""
    plain = SMALL | {"num_hidden_layers": 4, "use_relative_position_bias": True, "out_indices": [1, 2, 3, 4]}
    config = kind.config_class(**plain | {"num_labels": labels} | settings)
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            if name.endswith(("running_var", "normalization.weight", "before.weight", "after.weight")):
                tensor.abs_().add_(0.5)
    model.save_pretrained(folder)
    return model


def timm_small(folder: Path, **settings: object) -> Beit:
    """Saves a small timm BEiT in timm's format."""
    arguments: dict[str, object] = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 3}
    model = timm.create_model("beit_base_patch16_224", **arguments | settings)
    randomized(model)
    timm.models.save_for_hf(model, folder, model_args=arguments | settings)
    return model


def timm_vit(folder: Path, name: str, classes: int = 5) -> nn.Module:
    """Saves one of `VITS` in timm's format."""
    model = randomized(timm.create_model(name, num_classes=classes, **VITS[name]))
    timm.models.save_for_hf(model, folder, model_args=VITS[name], safe_serialization=True)
    return model


class ReleasedMasked(Beit):
    """The release's pretraining model, with its names: timm's Beit, a mask token and `lm_head`."""

    def __init__(self, vocab_size: int = 64, **settings: object) -> None:
        arguments: dict[str, object] = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 4}
        super().__init__(**arguments | settings, num_classes=0, global_pool="token")
        width = self.embed_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.lm_head = nn.Linear(width, vocab_size)
        randomized(self)

    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        def hide(module: nn.Module, inputs: object, patches: torch.Tensor) -> torch.Tensor:
            return torch.where(mask.unsqueeze(-1), self.mask_token, patches)

        with torch.no_grad():
            hook = self.patch_embed.register_forward_hook(hide)
            try:
                features = self.forward_features(images)[:, 1:]
            finally:
                hook.remove()
            return self.lm_head(features[mask])


class ReleasedAggregating(ReleasedMasked):
    """The pretraining model of BEiT v2's release: the class token and the patches of a block go through more blocks."""

    def __init__(
        self, vocab_size: int = 64, *, after: int = 2, extra: int = 2, shared: bool = True, **settings: object
    ) -> None:
        super().__init__(vocab_size, **settings)
        self.after, first = after, self.blocks[0]
        self.cls_pt_layers = nn.ModuleList(
            Block(self.embed_dim, first.attn.num_heads, qkv_bias=True, init_values=first.init_values)
            for _ in range(extra)
        )
        self.cls_pt_norm = None if shared else nn.LayerNorm(self.embed_dim, eps=1e-6)
        self.cls_pt_lm_head = None if shared else nn.Linear(self.embed_dim, vocab_size)
        randomized(self)

    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        patches = self.patch_embed(images)
        weight = mask.unsqueeze(-1).type_as(patches)
        patches = patches * (1 - weight) + self.mask_token * weight
        hidden = torch.cat((self.cls_token.expand(len(images), -1, -1), patches), dim=1)
        hidden = hidden if self.pos_embed is None else hidden + self.pos_embed
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        early = hidden
        for number, block in enumerate(self.blocks, start=1):
            hidden = block(hidden, shared_rel_pos_bias=bias)
            early = hidden[:, 1:] if number == self.after else early
        second = torch.cat((hidden[:, :1], early), dim=1)
        for block in self.cls_pt_layers:
            second = block(second, shared_rel_pos_bias=bias)
        norm, head = self.cls_pt_norm or self.norm, self.cls_pt_lm_head or self.lm_head
        return self.lm_head(self.norm(hidden)[:, 1:][mask]), head(norm(second)[:, 1:][mask])


def save_released(released: Beit, path: Path, *, legacy: bool = False, wrapped: str = "model", **args: object) -> Path:
    """Saves a `.pth` like the release's training: index buffers, optimizer, epoch and an argparse.Namespace."""
    tensors = dict(released.state_dict())
    for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
        buffer = name.replace("relative_position_bias_table", "relative_position_index")
        tensors[buffer] = gen_relative_position_index(released.patch_embed.grid_size)
    optimizer = torch.optim.AdamW(released.parameters())
    document = {
        wrapped: tensors,
        "optimizer": optimizer.state_dict(),
        "epoch": 799,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(lr=1.5e-3, batch_size=128, **args),
    }
    torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    return path


def save_plain(model: nn.Module, path: Path, change: Callable[[str], str] = str) -> Path:
    """Saves the bare state dict as safetensors, with keys changed."""
    save_file({change(name): tensor.clone() for name, tensor in model.state_dict().items()}, path)
    return path


def noise(size: tuple[int, int] = (64, 64), patches: int = 16, images: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns random images, and a mask that hides at least one patch of each image, and not all."""
    generator = torch.Generator().manual_seed(7)
    pictures = torch.randn(images, 3, *size, generator=generator)
    mask = torch.rand(images, patches, generator=generator) < 0.4
    mask[:, 0], mask[:, -1] = True, False
    return pictures, mask

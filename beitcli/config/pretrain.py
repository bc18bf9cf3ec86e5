"""Settings of `pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.architecture import SIZES, Aggregation, Architecture, require_size
from beitcli.config.common import MASKING_NAMES, Previewed, Sharded, in_memory_option
from beitcli.config.fields import option
from beitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Sharded, Previewed):
    command: ClassVar[str] = "pretrain"
    recipe: str = option("base", "Named settings, listed at the top of this help.", panel="Run", metavar="NAME")
    model: str = option("base", "Size of the backbone: " + ", ".join(SIZES) + ".", panel="Model")
    image_size: tuple[int, int] = option(
        (224, 224), "Image size in pixels: side of a square, or height and width.", panel="Model", ge=1
    )
    patch_size: int = option(16, "Side of a patch, in pixels.", panel="Model", metavar="PX", ge=1)
    positions: Literal["absolute", "shared"] = option(
        "absolute", "absolute: the paper's; shared: the release's relative bias.", panel="Model"
    )
    layer_scale: float = option(0.0, "Initial LayerScale; 0 = none.", panel="Model", ge=0)
    drop_path: float = option(0.1, "Stochastic depth of the last block (0-1).", panel="Model", ge=0, le=1)
    aggregate_after: int = option(
        0,
        "Patch aggregation (BEiT v2): the class token of the last block and the patches of this one (from 1) predict "
        "the targets too, through blocks that only pretraining has; 9 of 12, 21 of 24; 0 = none.",
        panel="Model",
        metavar="BLOCK",
        ge=0,
    )
    aggregate_blocks: int = option(2, "Number of extra blocks of --aggregate-after.", panel="Model", metavar="N", ge=1)
    aggregate_head: Literal["shared", "own"] = option(
        "shared", "shared: the extra blocks use the model's norm and head; own: their own.", panel="Model"
    )
    tokenizer: str = option(
        "own",
        "dall-e; a folder with OpenAI's encoder.pkl; a file of BEiT's own dVAE; hf://OWNER/NAME; a run of "
        "train-tokenizer; `own`: train one on DATA first, into RUN/tokenizer; `pixels`: as --target pixels.",
        panel="Tokenizer",
        metavar="TOKENIZER",
    )
    tokenizer_recipe: str = option("small", "Recipe of the `own` tokenizer.", panel="Tokenizer", metavar="NAME")
    tokenizer_steps: int | None = option(
        None, "Optimizer steps of the `own` tokenizer; default its recipe's.", panel="Tokenizer", metavar="STEPS", ge=1
    )
    token_precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Arithmetic of the tokenizer's encoder, its logits always fp32; auto: fp32, on CUDA fp16.",
        panel="Tokenizer",
    )
    token_filter: Literal["lanczos", "bicubic"] = option(
        "lanczos", "Filter that resizes the tokenizer's image; bicubic: BEiT v2's.", panel="Tokenizer"
    )
    token_cache: str | None = option(
        None,
        "Keep tokens here, and take them from here where they are kept: the run is the same, without the encoder.",
        panel="Tokenizer",
        may_change_on_resume=True,
        is_cache=True,
        metavar="DIR",
    )
    target: Literal["tokens", "pixels"] = option(
        "tokens",
        "What to predict of a patch: its visual token, or its pixels, normalized as the images are, by mean squared "
        "error and without a tokenizer (Table 4's ablation).",
        panel="Tokenizer",
    )
    masking: str = option(
        "blockwise", "blockwise or random (Table 4's ablation).", panel="Masking", offered=MASKING_NAMES
    )
    ratio: float | None = option(
        None, "Share of patches to hide (0-1); 0.4 where no recipe says it.", panel="Masking", gt=0, le=1
    )
    num_masked: int | None = option(None, "Patches to hide, instead of --ratio.", panel="Masking")
    min_block: int = option(16, "Minimum patches of a block.", panel="Masking", ge=1)
    predict: Literal["masked", "all"] = option(
        "masked", "Patches the loss is taken over (Table 4's ablation: all).", panel="Masking"
    )
    mask: bool = option(
        True, "Mask patches (Table 4's ablation: --no-mask).", panel="Masking", flags=("--mask/--no-mask",)
    )
    in_memory: bool = in_memory_option()
    color_jitter: float = option(0.4, "Brightness, contrast and saturation (0-1).", panel="Data", ge=0, le=1)
    min_crop: float = option(
        0.08, "Minimum area of the random crop, as a share of the image (0-1).", panel="Data", ge=0, le=1
    )
    views: Literal["fast", "reference"] = option(
        "fast",
        "fast: crop, resize, then jitter on the device; reference: the release's order, with Pillow. Equal draws.",
        panel="Data",
    )
    normalization: Literal["imagenet", "inception"] = option(
        "imagenet",
        "How images are normalized: by ImageNet's mean and std, or by 0.5 and 0.5 (the release's, on 22k).",
        panel="Data",
    )
    probe: str | None = option(
        None,
        "Labelled images to test the features on during training, whenever held-out images are measured: "
        "probe_top1, by nearest neighbours. Training is the same with and without.",
        panel="Data",
        may_change_on_resume=True,
        metavar="DATA",
    )
    holdout: int = option(
        512, "Images held out from training to measure on; at most a twentieth of the data.", panel="Data", ge=0
    )
    residual: Literal["fp32", "bf16"] = option(
        "fp32",
        "Residual stream between blocks; bf16 moves half the bytes and goes with --precision bf16.",
        panel="Machine",
    )
    compile: bool | None = option(
        None,
        "torch.compile the step; default on CUDA. The first step takes a minute longer; losses differ by rounding.",
        panel="Machine",
        may_change_on_resume=True,
        flags=("--compile/--no-compile",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mask and self.predict == "masked":
            raise UsageError("--no-mask leaves no masked patch to predict.", "Add --predict all.")
        if self.tokenizer == "pixels":  # alias of --target pixels
            object.__setattr__(self, "target", "pixels")
            object.__setattr__(self, "tokenizer", "own")
        if not self.tokenizer and self.target == "tokens":
            raise UsageError(
                f"Recipe '{self.recipe}' names no tokenizer, and no other is given.",
                "Add --tokenizer PATH: the weights of a VQ-KD, BEiT v2's own, or a run of `beit train-tokenizer`.",
            )
        require_size(self.model)
        self.architecture  # noqa: B018 - validates itself
        self._check_aggregation()

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            image_size=self.image_size,
            patch_size=self.patch_size,
            positions=self.positions,
            layer_scale=self.layer_scale,
            **SIZES[self.model],
        )

    @property
    def aggregation(self) -> Aggregation | None:
        """None without patch aggregation."""
        if not self.aggregate_after:
            return None
        return Aggregation(after=self.aggregate_after, blocks=self.aggregate_blocks, head=self.aggregate_head)

    def _check_aggregation(self) -> None:
        depth = self.architecture.depth
        if self.aggregate_after >= depth:
            raise UsageError(
                f"--aggregate-after {self.aggregate_after} is no block before the last: model '{self.model}' has "
                f"{depth}, and the patches are those of an earlier one.",
                f"Give 1 to {depth - 1}; BEiT v2 takes three quarters and more: 9 of 12, 21 of 24.",
            )
        if not self.aggregate_after and (self.aggregate_blocks, self.aggregate_head) != (2, "shared"):
            raise UsageError(
                "--aggregate-blocks and --aggregate-head are settings of patch aggregation, which is off.",
                f"Add --aggregate-after BLOCK, such as {max(1, 3 * depth // 4)}, or leave them out.",
            )

"""Sizes and steps of the tables 1, 3, 4, the convergence and figure 2, the same for all rows."""

from __future__ import annotations

from dataclasses import dataclass

SEGMENT_IMAGES = 367
"""Training images of CamVid."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one seed of the tables may cost.

    Attributes:
        model, image_size, patch_size: Of the backbone, pixels.
        num_masked, min_block: Of its masks, in patches.
        vocab_size: V of the tokenizers, whose images have half of `image_size`.
        tokenizer_steps, vqkd_steps: Optimizer steps of 16 images.
        images: Training images of the tokenizers; pretraining has all.
        batch_size: Images of a step of pretraining and of finetuning.
        pretrain_steps, longer_steps: Optimizer steps of a pretraining, and of the one that is called longer.
        pretrain_lr: Of every pretraining.
        aggregate_after: Block of BEiT v2's patch aggregation.
        few, many: Labels of the two finetunings, and the steps of each, enough to see each label once.
        measured: Validation images of a classifier.
        curve_points: Measurings of the finetunings that the convergence is read from.
        search_steps: Of a classifier that only chooses a learning rate; `scratch-longer` has all its steps for it.
        lrs, segment_lrs: The rates that are tried.
        segment_size, segment_batch, segment_steps, segment_search_steps: Of a segmenter.
        probe_images: Images that the probes learn from.
        map_images: Images whose attention is compared with masks.
        load, segment_load: Options of loading; segmenters have no `--in-memory`.
        arithmetic: Options of all training; `auto` may choose another library of products in another run.
    """

    model: str = "tiny"
    image_size: int = 48
    patch_size: int = 8
    num_masked: int = 14
    min_block: int = 4
    vocab_size: int = 256
    tokenizer_steps: int
    vqkd_steps: int
    images: int = 4000
    batch_size: int = 32
    pretrain_steps: int
    longer_steps: int
    pretrain_lr: str = "2e-3"
    aggregate_after: int = 3
    few: int = 4000
    few_steps: int
    many: int = 20000
    many_steps: int
    measured: int = 2000
    curve_points: int = 4
    search_steps: int
    lrs: tuple[str, str] = ("7e-4", "2e-3")
    segment_size: int = 48
    segment_batch: int = 4
    segment_steps: int
    segment_search_steps: int
    segment_lrs: tuple[str, str] = ("7e-4", "2e-3")
    probe_images: int = 2000
    map_images: int = 101
    load: str = "--workers 0"
    segment_load: str = "--workers 0"
    arithmetic: str = "--precision fp32 --cpu-matmul torch"

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def scratch_longer_steps(self) -> int:
        """Steps of scratch with few labels that has those of pretraining too."""
        return self.few_steps + self.pretrain_steps

    @property
    def probed(self) -> int:
        """Images that a probe is measured on."""
        return min(self.probe_images, self.measured)

    @property
    def segment_seen(self) -> int:
        """Training images that a segmenter sees."""
        return min(SEGMENT_IMAGES, self.segment_steps * self.segment_batch)

    def views(self, steps: int, batch_size: int | None = None, images: int | None = None) -> str:
        """Returns steps as views of images, and as epochs where the number of images is given."""
        views = steps * (batch_size or self.batch_size)
        epochs = f", {views / images:.1f} epochs" if images else ""
        return f"{steps:,} steps ({views:,} views{epochs})"

    @property
    def words(self) -> str:
        """The sizes and steps that a table's reader needs."""
        segment = self.views(self.segment_steps, self.segment_batch, SEGMENT_IMAGES)
        return (
            f"Sizes: `--model {self.model}`, {self.image_size}-pixel images in patches of {self.patch_size}, "
            f"{self.num_masked} of {self.grid**2} hidden, batches of {self.batch_size}. Tokenizer: "
            f"{self.views(self.tokenizer_steps, 16, self.images)} of {self.images:,} images, V = {self.vocab_size:,}. "
            f"Pretraining: {self.views(self.pretrain_steps)}; longer: {self.views(self.longer_steps)}. Few labels: "
            f"{self.few:,}, {self.views(self.few_steps, images=self.few)}; many: {self.many:,}, "
            f"{self.views(self.many_steps, images=self.many)}; {self.measured:,} images to measure on. Segmenters: "
            f"{segment} of {self.segment_size} pixels, which see {self.segment_seen} of {SEGMENT_IMAGES} training "
            f"images. Probes: {self.probe_images:,} images to learn from, {self.probed:,} to measure on."
        )


BUDGETS = {
    "small": Budget(  # a seed is forty minutes on two cores that multiply in bf16
        tokenizer_steps=800,
        vqkd_steps=400,
        pretrain_steps=1600,
        longer_steps=3200,
        few_steps=600,
        many_steps=1000,
        curve_points=6,
        search_steps=150,
        segment_steps=200,
        segment_search_steps=60,
        arithmetic="--precision bf16",
    ),
    "gpu": Budget(
        model="medium",
        image_size=64,
        num_masked=25,
        vocab_size=1024,
        tokenizer_steps=1500,
        vqkd_steps=1000,
        images=20000,
        batch_size=256,
        pretrain_steps=1600,
        longer_steps=4000,
        pretrain_lr="1e-3",
        aggregate_after=9,
        few_steps=300,
        many_steps=800,
        measured=5000,
        search_steps=100,
        lrs=("3e-4", "1e-3"),
        segment_size=96,
        segment_batch=16,
        segment_steps=400,
        segment_search_steps=150,
        segment_lrs=("3e-4", "1e-3"),
        probe_images=10000,
        load="--in-memory --workers 2",
        segment_load="--workers 2",
        arithmetic="--no-compile",  # compiling costs a minute a command
    ),
    "smoke": Budget(  # of the tests: every command, nothing learned
        vocab_size=16,
        tokenizer_steps=2,
        vqkd_steps=2,
        images=100,
        batch_size=4,
        pretrain_steps=2,
        longer_steps=3,
        few=40,
        few_steps=2,
        many=60,
        many_steps=2,
        measured=20,
        curve_points=2,
        search_steps=1,
        segment_batch=2,
        segment_steps=2,
        segment_search_steps=1,
        probe_images=40,
        map_images=4,
    ),
}

"""The cells of the tables 1, 3, 4, the convergence and figure 2: one pretraining is shared by all that need it.

tokenizer    VQ on the training images, one a seed; `beitv2`: VQ-KD, whose teacher is the scratch classifier of many
pretrain     a variant of pretraining, always with the same images, order, steps, batch and learning rate
few, many    a classifier of few or many labels; the rate of both is chosen on few
segment      a segmenter
knn, linear  probes of frozen features
iou          the last block's attention beside masks
search-few-RATE, search-segment-RATE: of seed 0 only, two rates on a split of the training labels; every seed takes
             the better one. A search has fewer steps than what it is for, but that of `scratch-longer`, whose length
             is what sets it apart
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from paper_tables.budgets import BUDGETS, Budget
from paper_tables.cells import Cell

# What a variant of pretraining adds to the command of `beit`.
PRETRAININGS: Mapping[str, str] = {
    "beit": "",
    "longer": "",
    "pixels": "--target pixels",
    "random": "--masking random",
    "pixels-random": "--target pixels --masking random",
    "all": "--predict all",
    "no-mask": "--no-mask --predict all",
    "beitv2": "",
}
SCRATCH = ("scratch", "scratch-longer")
# Segmenters that start from a classifier: whose, of many labels.
CLASSIFIERS: Mapping[str, str] = {"supervised": "scratch", "intermediate": "beit"}
CURVES = (*SCRATCH, "beit")
"""Starts whose finetuning with few labels is measured on the way."""


@dataclass(frozen=True)
class Chains:
    """Makes the cells of one budget.

    Attributes:
        name: Of the budget.
    """

    name: str

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.name]

    def place(self, variant: str, seed: int, stage: str) -> str:
        return f"{self.name}/{variant}/seed-{seed}/{stage}"

    def common(self, seed: int) -> str:
        return f"--seed {seed} {self.budget.load}"

    def training(self, seed: int, stage: str = "") -> str:
        """Returns the last words of a training of a BEiT."""
        load = self.budget.segment_load if stage == "segment" else self.budget.load
        return _line([f"--seed {seed} {load} {self.budget.arithmetic} --out {{out}}"])

    def tokenizer(self, variant: str, seed: int) -> Iterator[Cell]:
        """Yields the tokenizer of a variant, and before it what it needs."""
        b = self.budget
        size, line = b.image_size // 2, f"train-tokenizer {{train}} --limit {b.images}"
        if variant != "beitv2":
            name = self.place("tokenizer", seed, "tokenizer")
            how = f"--recipe small --vocab-size {b.vocab_size} --size {size} --steps {b.tokenizer_steps}"
            yield Cell(name, f"{line} {how} {self.common(seed)} --out {{out}}", seed)
            return
        yield from self.classifier("scratch", seed, "many")
        teacher = self.place("scratch", seed, "many")
        how = f"--recipe vqkd-small --teacher {{many}} --vocab-size {b.vocab_size} --size {b.image_size}"
        line = f"{line} {how} --steps {b.vqkd_steps} {self.common(seed)} --out {{out}}"
        yield Cell(self.place("beitv2", seed, "tokenizer"), line, seed, (teacher,))

    def pretraining(self, variant: str, seed: int) -> Iterator[Cell]:
        """Yields a pretraining, and before it what it needs."""
        b = self.budget
        needs: tuple[str, ...] = ()
        tokenizer = ""
        if "pixels" not in variant:
            yield from self.tokenizer(variant, seed)
            needs = (self.place("beitv2" if variant == "beitv2" else "tokenizer", seed, "tokenizer"),)
            tokenizer = "--tokenizer {tokenizer}"
        steps = b.longer_steps if variant == "longer" else b.pretrain_steps
        masks = "" if variant == "no-mask" else f"--num-masked {b.num_masked} --min-block {b.min_block}"
        if "random" in variant:
            masks = f"--num-masked {b.num_masked}"
        words = [
            "pretrain {train} --recipe small",
            f"--model {b.model} --image-size {b.image_size} --patch-size {b.patch_size}",
            f"{tokenizer} {masks} {PRETRAININGS[variant]}",
            f"--aggregate-after {b.aggregate_after}" if variant == "beitv2" else "",
            f"--steps {steps} --warmup-steps {steps // 10} --batch-size {b.batch_size} --lr {b.pretrain_lr}",
            f"--previews 0 --save-every {steps} {self.training(seed)}",
        ]
        yield Cell(self.place(variant, seed, "pretrain"), _line(words), seed, needs)

    def classifier(self, variant: str, seed: int, stage: str) -> Iterator[Cell]:
        """Yields the classifier of a start of few or many labels (`stage`), and before it what it needs."""
        b = self.budget
        start, needs = yield from self._start(variant, seed)
        steps = b.few_steps if stage == "few" else b.many_steps
        if variant == "scratch-longer":
            steps += b.pretrain_steps
        rates = yield from self._search(variant, "few")
        has_curve = stage == "few" and variant in CURVES
        every = -(-steps // b.curve_points) if has_curve else steps
        words = [self._classify(start, b.few if stage == "few" else b.many, steps), "--lr {rate} --val {val}"]
        words.append(f"--save-every {every} --measure-share {1 if has_curve else 0} {self.training(seed)}")
        yield Cell(self.place(variant, seed, stage), _line(words), seed, needs, rates=rates, has_curve=has_curve)

    def segmenter(self, variant: str, seed: int) -> Iterator[Cell]:
        """Yields the segmenter of a start, and before it what it needs."""
        b = self.budget
        start, needs = yield from self._start(variant, seed)
        rates = yield from self._search(variant, "segment")
        words = [
            self._segment("{segmentation}", start, b.segment_steps),
            f"--lr {{rate}} --save-every {b.segment_steps} {self.training(seed, 'segment')}",
        ]
        yield Cell(self.place(variant, seed, "segment"), _line(words), seed, needs, rates=rates)

    def probes(self, variant: str, seed: int) -> Iterator[Cell]:
        """Yields both probes of a pretraining; `untrained`: of BEiT's shape with random weights."""
        model = "{pretrain}@random" if variant == "untrained" else "{pretrain}"
        run = "beit" if variant == "untrained" else variant
        yield from self.pretraining(run, seed)
        for protocol in ("knn", "linear"):
            line = f"eval {model} {{val}} --train {{train}} --protocol {protocol} --limit {self.budget.probe_images}"
            line = f"{line} --feature-cache {{features}} --seed {seed} --workers 0"
            yield Cell(self.place(variant, seed, protocol), line, seed, (self.place(run, seed, "pretrain"),))

    def attention(self, variant: str, seed: int) -> Iterator[Cell]:
        """Yields the comparison of a model's attention with masks; `untrained`: of BEiT's shape with random weights."""
        stage = "few" if variant == "scratch" else "pretrain"
        run = "beit" if variant == "untrained" else variant
        yield from self.classifier(run, seed, "few") if stage == "few" else self.pretraining(run, seed)
        model = f"{{{stage}}}@random" if variant == "untrained" else f"{{{stage}}}"
        line = f"{model} {{segmentation}} --limit {self.budget.map_images} --seed {seed}"
        needs = (self.place(run, seed, stage),)
        yield Cell(self.place(variant, seed, "iou"), line, seed, needs, script="attention_iou.py")

    def _start(self, variant: str, seed: int) -> Generator[Cell, None, tuple[str, tuple[str, ...]]]:
        """Yields what a start needs; returns `--init` with its options, and the names of the cells."""
        b = self.budget
        if variant in SCRATCH:
            return f"--init random --model {b.model} --patch-size {b.patch_size}", ()
        if variant in CLASSIFIERS:
            yield from self.classifier(CLASSIFIERS[variant], seed, "many")
            return "--init {many}", (self.place(CLASSIFIERS[variant], seed, "many"),)
        yield from self.pretraining(variant, seed)
        return "--init {pretrain}", (self.place(variant, seed, "pretrain"),)

    def _search(self, variant: str, stage: str) -> Generator[Cell, None, tuple[tuple[str, str], ...]]:
        """Yields the cells that choose a start's rate, of seed 0; returns the rates, each with the cell's name."""
        b = self.budget
        chosen: list[tuple[str, str]] = []
        start, needs = yield from self._start(variant, 0)
        for rate in b.lrs if stage == "few" else b.segment_lrs:
            name = self.place(variant, 0, f"search-{stage}-{rate}")
            if stage == "few":
                steps = b.scratch_longer_steps if variant == "scratch-longer" else b.search_steps
                words = [self._classify(start, b.few, steps), "--val {search}"]
            else:
                words = [self._segment("{segmentation_search}", start, b.segment_search_steps)]
                steps = b.segment_search_steps
            words.append(f"--lr {rate} --save-every {steps} {self.training(0, stage)}")
            yield Cell(name, _line(words), 0, needs)
            chosen.append((rate, name))
        return tuple(chosen)

    def _classify(self, start: str, labels: int, steps: int) -> str:
        b = self.budget
        line = f"finetune {{train}} {start} --recipe small --size {b.image_size} --limit {labels}"
        return f"{line} --steps {steps} --warmup-steps {steps // 10} --batch-size {b.batch_size}"

    def _segment(self, data: str, start: str, steps: int) -> str:
        b = self.budget
        line = f"finetune {data} {start} --task segment --recipe small-segment --head upernet --size {b.segment_size}"
        return f"{line} --ignore-index 11 --steps {steps} --warmup-steps {steps // 10} --batch-size {b.segment_batch}"


def once(cells: Iterable[Cell]) -> list[Cell]:
    """Returns the cells in order, each the first time; whole seeds first."""
    return sorted({cell.name: cell for cell in cells}.values(), key=lambda cell: cell.seed)


def _line(words: Sequence[str]) -> str:
    return " ".join(" ".join(words).split())

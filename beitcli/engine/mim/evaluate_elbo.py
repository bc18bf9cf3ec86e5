"""`beit eval --protocol elbo`: the variational bound of a pretrained run and its tokenizer (paper section 2.4).

    E_q[log p(x|z)] - KL(q(z|x) || p(z|x~))         in nats per image; bits per dimension of the tokenizer's image

beside the same with priors that do not look at the image: uniform, and the token frequencies of training (unigram).
Images are center crops without colour jitter; masks are those of pretraining in epoch 0. Over all positions it is a
bound of log p(x|x~). Over hidden positions, for which BEiT is trained, it is one of E_q[log p(x|x~, tokens of visible
patches)]: those tokens are given, and cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from beitcli.config.evaluate import EvalConfig
from beitcli.config.intensity import with_models_intensity
from beitcli.data.loading.batch_datasets import Masking
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import CenterTwoCropTransform
from beitcli.engine.events import Note, OnEvent, Warned, downloads, ignore
from beitcli.engine.io.eval_arguments import expect_tokens
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.mim.bound_measurement import (
    MODEL_PRIOR,
    BoundMeter,
    Terms,
    TrainingStatistics,
    training_statistics,
)
from beitcli.engine.mim.elbo_report import ElboReport, stage_one_rows, stage_two_rows
from beitcli.engine.mim.pixel_likelihood import LEVELS
from beitcli.engine.mim.variational_bound import uniform_log_prior, unigram_log_prior
from beitcli.engine.probing.training_images import training_source
from beitcli.engine.tokenizer_loading import tokenizer_for, tokenizer_of
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.evaluation import join_evaluation, warn_bad
from beitcli.errors import StorageError, UsageError
from beitcli.masking import keyed_mask, make_masking, num_masked_from
from beitcli.models.checkpoints.build import masked_image_model_of
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import open_model
from beitcli.runtime.storage.checkpoint import verified_checkpoint
from beitcli.tokenizers.base import Tokenizer

_FITTED_ON = 1024  # training images without --limit


@dataclass(frozen=True)
class _Opened:
    """A run with its tokenizer and the transform of its images; `masking` is None if nothing is hidden."""

    checkpoint: CheckpointHandle
    tokenizer: Tokenizer
    transform: CenterTwoCropTransform
    masking: Masking | None
    num_positions: int

    @property
    def dimensions(self) -> int:
        height, width = self.transform.token_size  # type: ignore[misc]
        return 3 * height * width

    @property
    def likelihood(self) -> str | None:
        """Name of p(x|z); None without a decoder."""
        model = self.tokenizer.model
        return None if not model.can_decode else "logit-laplace" if model.has_logit_laplace else "gaussian"


@dataclass(frozen=True)
class _Fitted:
    """What comes from training images.

    Attributes:
        statistics: None if no training images were needed, or there are none; `named` is their name.
        counts: (V,) token counts of training, and where they come from: `run` or `train`; None for none.
    """

    statistics: TrainingStatistics | None
    named: str | None
    counts: Tensor | None
    counted: str | None


def elbo(config: EvalConfig, on_event: OnEvent = ignore) -> ElboReport:
    """Measures the bound on images that need no labels.

    Raises:
        StorageError: The model is not of masked image modeling with tokens, or the tokenizer has other codes.
        UsageError: Nothing was hidden in training, or there are no images to fit the variance on.
        DataError: Too many bad images, or none that can be read.
    """
    checkpoint = _checkpoint(config, on_event)
    config = with_models_intensity(config, checkpoint.settings)
    batching = join_evaluation(config, checkpoint, on_event)
    world, on_event = batching.compute.world, batching.on_event
    tokenizer = world.rank_zero_first(lambda: _tokenizer(config, checkpoint, batching, on_event))
    opened = _opened(config, checkpoint, tokenizer, on_event)
    size = max(checkpoint.architecture.image_size)
    source = world.rank_zero_first(lambda: open_inputs(config, sample_size=size, on_event=on_event))
    fitted = _fitted(config, opened, batching, source)
    if opened.likelihood is None:
        on_event(Warned(f"Tokenizer '{tokenizer.reference}' has no decoder: stage 2 alone is measured."))
    priors = {"uniform": uniform_log_prior(tokenizer.vocab_size)}
    if fitted.counts is not None:
        priors["unigram"] = unigram_log_prior(fitted.counts)
    meter = BoundMeter(
        model=masked_image_model_of(checkpoint, checkpoint.tensors()).to(batching.compute.device),
        tokenizer=tokenizer,
        normalization=checkpoint.normalization,
        batching=batching,
        all_positions=config.positions == "all",
        samples=config.samples,
        seed=config.seed,
        deviation=fitted.statistics.deviation if fitted.statistics else None,
        priors=priors,
    )
    terms, bad = meter.measure(source, opened.transform, opened.masking)
    warn_bad(config, bad, len(source), on_event)
    return _report(config, opened, fitted, terms, len(bad))


def _checkpoint(config: EvalConfig, on_event: OnEvent) -> CheckpointHandle:
    checkpoint = open_model(config.model, downloads(on_event))
    expect_tokens(checkpoint)
    return checkpoint.normalized(config.normalization)


def _tokenizer(config: EvalConfig, checkpoint: CheckpointHandle, batching: Batching, on_event: OnEvent) -> Tokenizer:
    device = batching.compute.device
    if config.tokenizer is not None:
        tokenizer = tokenizer_for(config.tokenizer, device, on_event)
        named = checkpoint.settings.get("tokenizer") or {}
        if named.get("sha256", tokenizer.sha256) != tokenizer.sha256:
            said = (
                f"The SHA-256 of '{config.tokenizer}' is not that of the tokenizer that '{config.model}' learned from."
            )
            on_event(Warned(said))
    else:
        tokenizer = tokenizer_of(checkpoint, device, on_event)
    if tokenizer.vocab_size != checkpoint.outputs:
        raise StorageError(
            f"Tokenizer '{tokenizer.reference}' has {tokenizer.vocab_size:,} codes, '{config.model}' "
            f"{checkpoint.outputs} outputs.",
            "Give the tokenizer that it learned from.",
        )
    return tokenizer


def _opened(config: EvalConfig, checkpoint: CheckpointHandle, tokenizer: Tokenizer, on_event: OnEvent) -> _Opened:
    """Builds transform and masks.

    Raises:
        UsageError: Hidden positions of a run that hid nothing.
    """
    grid, factor = checkpoint.architecture.grid, tokenizer.model.downsample
    own = checkpoint.settings.get("masking", {})
    if own is None and config.positions == "hidden":
        raise UsageError(f"'{config.model}' hid no patches in training.", "Add --positions all.")
    masking, hidden = None, 0
    if own is None:
        on_event(Note(f"'{config.model}' hid no patches in training, and none are hidden here: x~ is x."))
    else:
        hidden = own.get("num_masked") or num_masked_from(None, None, grid)
        generator = make_masking(own.get("name", "blockwise"), grid, hidden, own.get("min_block", 16))
        masking = partial(keyed_mask, generator, own.get("seed", config.seed))
    return _Opened(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        transform=CenterTwoCropTransform(
            image_size=checkpoint.architecture.image_size,
            token_size=(grid[0] * factor, grid[1] * factor),
            token_filter=checkpoint.settings.get("token_filter", "lanczos"),
        ),
        masking=masking,
        num_positions=checkpoint.architecture.num_patches if config.positions == "all" else hidden,
    )


def _fitted(config: EvalConfig, opened: _Opened, batching: Batching, source: Source) -> _Fitted:
    """Takes the token counts of the run, and what else is needed from training images.

    Raises:
        UsageError: The variance is to be fitted, and there are no training images.
    """
    world, on_event = batching.compute.world, batching.on_event
    counts = world.run_on_rank_zero(lambda: _run_counts(opened.checkpoint))
    needs_variance = opened.likelihood == "gaussian"
    if not needs_variance and counts is not None:
        return _Fitted(None, None, counts, "run")
    size = max(opened.checkpoint.architecture.image_size)
    cut = replace(config, limit=config.limit or _FITTED_ON)
    try:
        train, named = world.rank_zero_first(
            lambda: training_source(cut, source.splits, size, on_event, labelled=False)
        )
    except UsageError:
        if needs_variance:
            raise
        on_event(Warned("The run keeps no token counts, so there is no unigram prior. --train DATA gives one."))
        return _Fitted(None, None, None, None)
    statistics = training_statistics(opened.tokenizer, batching, train, opened.transform)
    warn_bad(config, statistics.bad, len(train), on_event, "training image")
    if counts is not None:
        return _Fitted(statistics, named, counts, "run")
    return _Fitted(statistics, named, statistics.counts, "train")


def _run_counts(checkpoint: CheckpointHandle) -> Tensor | None:
    """Returns the (V,) counts of hidden patches' tokens in training; None if the checkpoint has no trainer's state."""
    if checkpoint.folder is None or not (checkpoint.folder.path / "trainer.safetensors").exists():
        return None
    counts = verified_checkpoint(checkpoint.folder.path).trainer_tensors().get("task/token_counts")
    fits = counts is not None and counts.shape == (checkpoint.outputs,) and bool((counts >= 0).all())
    return counts if fits else None


def _report(config: EvalConfig, opened: _Opened, fitted: _Fitted, terms: Terms, bad: int) -> ElboReport:
    statistics, decodes = fitted.statistics, opened.likelihood is not None
    stage1 = stage_one_rows(terms, opened.dimensions) if decodes else []
    stage2 = stage_two_rows(terms, opened.dimensions)
    own = [row for row in stage2 if row["prior"] == MODEL_PRIOR and row["bound"] is not None]
    best = own[-1] if own else {}  # with the expectation over q, if it was taken
    is_gaussian = opened.likelihood == "gaussian" and statistics is not None
    return ElboReport(
        model=config.model,
        data=" ".join(config.data),
        task="pretrain",
        protocol=config.protocol,
        images=len(terms["entropy"]),
        bad=bad,
        positions=config.positions,
        num_positions=opened.num_positions,
        tokenizer=opened.tokenizer.reference,
        vocab_size=opened.tokenizer.vocab_size,
        likelihood=opened.likelihood,
        deviation=LEVELS * (statistics.deviation or 0.0) if is_gaussian and statistics else None,
        dimensions=opened.dimensions if decodes else None,
        samples=config.samples,
        train=fitted.named,
        train_images=statistics.images if statistics else None,
        unigram_counts=fitted.counted,
        posterior_entropy=float(terms["entropy"].mean()),
        bound=best.get("bound"),
        bound_se=best.get("bound_se"),
        bits_per_dim=best.get("bits_per_dim"),
        stage1=stage1,
        stage2=stage2,
    )

"""The commands as functions: a config, or data and settings, in; a report out. Each calls the engine's function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from beitcli.api.call import Reference, References, event_handler, resolve_call
from beitcli.config.embed import EmbedConfig
from beitcli.config.evaluate import EvalConfig
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.predict import PredictConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.tokenize import TokenizeConfig
from beitcli.config.train_tokenizer import TrainTokenizerConfig

if TYPE_CHECKING:
    from beitcli.engine.classification.evaluate import EvalReport
    from beitcli.engine.classification.finetune import FinetuneReport
    from beitcli.engine.detection.evaluate import DetectionEvalReport
    from beitcli.engine.detection.finetune import DetectReport
    from beitcli.engine.events import OnEvent
    from beitcli.engine.mim.elbo_report import ElboReport
    from beitcli.engine.pretrain import PretrainReport
    from beitcli.engine.probing.evaluate import ProbeReport
    from beitcli.engine.segmentation.evaluate import SegmentationEvalReport
    from beitcli.engine.segmentation.finetune import SegmentReport
    from beitcli.engine.train_tokenizer import TrainTokenizerReport


@overload
def pretrain(
    data: References = ...,
    *,
    dry_run: Literal[True],
    progress: bool = ...,
    on_event: OnEvent | None = ...,
    **settings: Any,
) -> dict[str, Any]: ...
@overload
def pretrain(
    data: PretrainConfig | References = ...,
    *,
    dry_run: Literal[False] = ...,
    progress: bool = ...,
    on_event: OnEvent | None = ...,
    **settings: Any,
) -> PretrainReport: ...
def pretrain(
    data: PretrainConfig | References = (),
    *,
    dry_run: bool = False,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> PretrainReport | dict[str, Any]:
    """Pretrains a BEiT by masked image modeling: `beit pretrain`.

    Args:
        data: Images: a folder, shards, `sample`, ... or several of these; or a config. Empty to resume a run (`out=RUN,
            resume=True`).
        dry_run: Return the plan as a dict, without training.
        progress: Show progress on stderr.
        on_event: Receives the events; progress is not shown then.
        settings: Those of `beit pretrain --help`.

    Raises:
        BeitError: Any subclass; Stopped if a signal or Ctrl-C ended the run, after saving it.
    """
    resolved = resolve_call(PretrainConfig, "data", data, settings, dry_run=dry_run)
    with event_handler(progress, on_event, resolved.notes) as events:
        from beitcli.engine.pretrain import pretrain

        return pretrain(resolved.config, events)


@overload
def finetune(
    data: References = ...,
    *,
    dry_run: Literal[True],
    progress: bool = ...,
    on_event: OnEvent | None = ...,
    **settings: Any,
) -> dict[str, Any]: ...
@overload
def finetune(
    data: FinetuneConfig | References = ...,
    *,
    dry_run: Literal[False] = ...,
    progress: bool = ...,
    on_event: OnEvent | None = ...,
    **settings: Any,
) -> FinetuneReport | SegmentReport | DetectReport: ...
def finetune(
    data: FinetuneConfig | References = (),
    *,
    dry_run: bool = False,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> FinetuneReport | SegmentReport | DetectReport | dict[str, Any]:
    """Finetunes a classifier, segmenter or detector: `beit finetune`; requires `init=MODEL` or `init="random"`.

    Returns:
        The report of the task. Arguments and errors are those of `pretrain`.
    """
    resolved = resolve_call(FinetuneConfig, "data", data, settings, dry_run=dry_run)
    with event_handler(progress, on_event, resolved.notes) as events:
        from beitcli.engine.finetune import finetune

        return cast("FinetuneReport | SegmentReport | DetectReport | dict[str, Any]", finetune(resolved.config, events))


@overload
def train_tokenizer(
    data: References = ...,
    *,
    dry_run: Literal[True],
    progress: bool = ...,
    on_event: OnEvent | None = ...,
    **settings: Any,
) -> dict[str, Any]: ...
@overload
def train_tokenizer(
    data: TrainTokenizerConfig | References = ...,
    *,
    dry_run: Literal[False] = ...,
    progress: bool = ...,
    on_event: OnEvent | None = ...,
    **settings: Any,
) -> TrainTokenizerReport: ...
def train_tokenizer(
    data: TrainTokenizerConfig | References = (),
    *,
    dry_run: bool = False,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> TrainTokenizerReport | dict[str, Any]:
    """Trains a visual tokenizer: `beit train-tokenizer`. Arguments and errors are those of `pretrain`."""
    resolved = resolve_call(TrainTokenizerConfig, "data", data, settings, dry_run=dry_run)
    with event_handler(progress, on_event, resolved.notes) as events:
        from beitcli.engine.train_tokenizer import train_tokenizer

        return train_tokenizer(resolved.config, events)


def evaluate(
    model: EvalConfig | Reference,
    data: References = (),
    *,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> EvalReport | SegmentationEvalReport | DetectionEvalReport | ProbeReport | ElboReport:
    """Evaluates a model on images, labelled ones except for `protocol="elbo"`: `beit eval`.

    Args:
        model: A run, a checkpoint, `hf://OWNER/NAME`, `timm/NAME`, ...; or a config.
        data: Images with labels, masks or boxes.

    Returns:
        The report of the model's task, of a probe (`protocol="knn"` or `"linear"`), or of the variational bound
            (`"elbo"`).
    """
    resolved = resolve_call(EvalConfig, "data", data, settings, model)
    with event_handler(progress, on_event, resolved.notes) as events:
        from beitcli.engine.evaluate import evaluate

        report = evaluate(resolved.config, events)
    return cast("EvalReport | SegmentationEvalReport | DetectionEvalReport | ProbeReport | ElboReport", report)


def predict(
    model: PredictConfig | Reference,
    inputs: References = (),
    *,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Predicts with a finetuned model: `beit predict`. Settings are checked at once, images are read on demand.

    Args:
        model: A classifier, segmenter or detector; or a config.
        inputs: Images, with or without labels.

    Yields:
        One dict per image, in input order, as in the command's JSON Lines; `{"path", "error"}` for an unreadable image.

    Raises:
        DataError: After the last image, if some could not be read.
    """
    resolved = resolve_call(PredictConfig, "inputs", inputs, settings, model)

    def documents() -> Iterator[dict[str, Any]]:
        with event_handler(progress, on_event, resolved.notes) as events:
            from beitcli.engine.predict import predict

            yield from predict(resolved.config, events)

    return documents()


def embed(
    model: EmbedConfig | Reference,
    inputs: References = (),
    *,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Computes features of images: `beit embed`. Settings are checked at once, images are read on demand.

    Yields:
        One dict per image, in input order: `{"path", "features"}`, or `{"path", "error"}`. With `output` the features
            are written to that file while the iterator is consumed, and nothing is yielded:
            `list(beitcli.embed(...))`. With `query` one dict with its neighbours.

    Raises:
        DataError: After the last image, if some could not be read.
    """
    resolved = resolve_call(EmbedConfig, "inputs", inputs, settings, model)

    def documents() -> Iterator[dict[str, Any]]:
        with event_handler(progress, on_event, resolved.notes) as events:
            from beitcli.engine.embed import embed
            from beitcli.engine.io.feature_files import with_numbers

            yield from map(with_numbers, embed(resolved.config, events))

    return documents()


def tokenize(
    inputs: TokenizeConfig | References,
    *,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Converts images to visual tokens: `beit tokenize`; requires `tokenizer=`. Settings are checked at once.

    Yields:
        One dict per image, in input order: `{"path", "grid", "tokens"}`, or `{"path", "error"}`. With `output` the
            tokens are written to that file while the iterator is consumed, and nothing is yielded:
            `list(beitcli.tokenize(...))`.

    Raises:
        DataError: After the last image, if some could not be read.
    """
    resolved = resolve_call(TokenizeConfig, "inputs", inputs, settings)

    def documents() -> Iterator[dict[str, Any]]:
        with event_handler(progress, on_event, resolved.notes) as events:
            from beitcli.engine.tokenize import tokenize

            yield from tokenize(resolved.config, events)

    return documents()

"""The jobs: config or data and settings in, report out. Each is the engine's function of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from beitcli.api.call import Reference, References, event_handler, resolve_call
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
        data: Images: a folder, shards, `sample`, ... or several; or a whole config. Empty to go on with a run
            (`out=RUN, resume=True`).
        dry_run: Return the plan as a dict, and train nothing.
        progress: Show progress on stderr.
        on_event: Receives the events; nothing is shown then.
        settings: Those of `beit pretrain --help`.

    Raises:
        BeitError: Any of its kinds; Stopped where a signal or Ctrl-C ended the run, its progress saved.
    """
    config = resolve_call(PretrainConfig, "data", data, settings, dry_run=dry_run)
    with event_handler(progress, on_event) as events:
        from beitcli.engine.pretrain import pretrain

        return pretrain(config, events)


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
    """Finetunes a classifier, segmenter or detector: `beit finetune`; `init=MODEL` is needed, or `init="random"`.

    Returns:
        The report of the task. Arguments and errors are those of `pretrain`.
    """
    config = resolve_call(FinetuneConfig, "data", data, settings, dry_run=dry_run)
    with event_handler(progress, on_event) as events:
        from beitcli.engine.finetune import finetune

        return cast("FinetuneReport | SegmentReport | DetectReport | dict[str, Any]", finetune(config, events))


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
    config = resolve_call(TrainTokenizerConfig, "data", data, settings, dry_run=dry_run)
    with event_handler(progress, on_event) as events:
        from beitcli.engine.train_tokenizer import train_tokenizer

        return train_tokenizer(config, events)


def evaluate(
    model: EvalConfig | Reference,
    data: References = (),
    *,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> EvalReport | SegmentationEvalReport | DetectionEvalReport | ProbeReport:
    """Measures one model on labelled images: `beit eval`.

    Args:
        model: A run, a checkpoint, `hf://OWNER/NAME`, `timm/NAME`, ...; or a whole config.
        data: Images with labels, masks or boxes.

    Returns:
        The report of the model's kind, or of a probe (`protocol="knn"` or `"linear"`).
    """
    config = resolve_call(EvalConfig, "data", data, settings, model)
    with event_handler(progress, on_event) as events:
        from beitcli.engine.evaluate import evaluate

        return cast("EvalReport | SegmentationEvalReport | DetectionEvalReport | ProbeReport", evaluate(config, events))


def predict(
    model: PredictConfig | Reference,
    inputs: References = (),
    *,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """What a finetuned model says of images: `beit predict`. Settings are checked at once, images read as asked for.

    Args:
        model: A classifier, segmenter or detector; or a whole config.
        inputs: Images, with or without labels.

    Yields:
        A dict an image, in input order: the JSON Lines of the command; `{"path", "error"}` of one that cannot be read.

    Raises:
        DataError: After the last image, where some could not be read.
    """
    config = resolve_call(PredictConfig, "inputs", inputs, settings, model)

    def documents() -> Iterator[dict[str, Any]]:
        with event_handler(progress, on_event) as events:
            from beitcli.engine.predict import predict

            yield from predict(config, events)

    return documents()


def tokenize(
    inputs: TokenizeConfig | References,
    *,
    progress: bool = True,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Turns images into visual tokens: `beit tokenize`; `tokenizer=` is needed. Settings are checked at once.

    Yields:
        A dict an image, in input order: `{"path", "grid", "tokens"}`, or `{"path", "error"}`. With `output` the
        tokens go to that file, and nothing is yielded before it is written: `list(beitcli.tokenize(...))`.

    Raises:
        DataError: After the last image, where some could not be read.
    """
    config = resolve_call(TokenizeConfig, "inputs", inputs, settings)

    def documents() -> Iterator[dict[str, Any]]:
        with event_handler(progress, on_event) as events:
            from beitcli.engine.tokenize import tokenize

            yield from tokenize(config, events)

    return documents()

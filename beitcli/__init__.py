"""BEiT as one command-line tool, and the same jobs as Python functions: `import beitcli; beitcli.pretrain("photos/")`.

Names are imported on first use (PEP 562): `import beitcli` itself loads neither torch nor numpy nor the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from beitcli.api.jobs import embed, evaluate, finetune, predict, pretrain, tokenize, train_tokenizer
    from beitcli.api.loading import load_model, load_tokenizer
    from beitcli.api.model import Model
    from beitcli.config.embed import EmbedConfig
    from beitcli.config.evaluate import EvalConfig
    from beitcli.config.finetune import FinetuneConfig
    from beitcli.config.predict import PredictConfig
    from beitcli.config.pretrain import PretrainConfig
    from beitcli.config.tokenize import TokenizeConfig
    from beitcli.config.train_tokenizer import TrainTokenizerConfig
    from beitcli.engine.classification.evaluate import EvalReport
    from beitcli.engine.classification.finetune import FinetuneReport
    from beitcli.engine.detection.evaluate import DetectionEvalReport
    from beitcli.engine.detection.finetune import DetectReport
    from beitcli.engine.mim.elbo_report import ElboReport
    from beitcli.engine.pretrain import PretrainReport
    from beitcli.engine.probing.evaluate import ProbeReport
    from beitcli.engine.segmentation.evaluate import SegmentationEvalReport
    from beitcli.engine.segmentation.finetune import SegmentReport
    from beitcli.engine.train_tokenizer import TrainTokenizerReport
    from beitcli.errors import (
        BeitError,
        DataError,
        DistributedError,
        DivergedError,
        Interrupted,
        SignalStop,
        Stopped,
        StorageError,
        UsageError,
    )
    from beitcli.tokenizers.base import Tokenizer

__all__ = [
    "BeitError",
    "DataError",
    "DetectReport",
    "DetectionEvalReport",
    "DistributedError",
    "DivergedError",
    "ElboReport",
    "EmbedConfig",
    "EvalConfig",
    "EvalReport",
    "FinetuneConfig",
    "FinetuneReport",
    "Interrupted",
    "Model",
    "PredictConfig",
    "PretrainConfig",
    "PretrainReport",
    "ProbeReport",
    "SegmentReport",
    "SegmentationEvalReport",
    "SignalStop",
    "Stopped",
    "StorageError",
    "TokenizeConfig",
    "Tokenizer",
    "TrainTokenizerConfig",
    "TrainTokenizerReport",
    "UsageError",
    "__version__",
    "embed",
    "evaluate",
    "finetune",
    "load_model",
    "load_tokenizer",
    "predict",
    "pretrain",
    "tokenize",
    "train_tokenizer",
]

# Module to the names that come from it; the imports above are the same, for type checkers.
_NAMES = {
    "api.jobs": "embed evaluate finetune predict pretrain tokenize train_tokenizer",
    "api.loading": "load_model load_tokenizer",
    "api.model": "Model",
    "config.embed": "EmbedConfig",
    "config.evaluate": "EvalConfig",
    "config.finetune": "FinetuneConfig",
    "config.predict": "PredictConfig",
    "config.pretrain": "PretrainConfig",
    "config.tokenize": "TokenizeConfig",
    "config.train_tokenizer": "TrainTokenizerConfig",
    "engine.classification.evaluate": "EvalReport",
    "engine.classification.finetune": "FinetuneReport",
    "engine.detection.evaluate": "DetectionEvalReport",
    "engine.detection.finetune": "DetectReport",
    "engine.mim.elbo_report": "ElboReport",
    "engine.pretrain": "PretrainReport",
    "engine.probing.evaluate": "ProbeReport",
    "engine.segmentation.evaluate": "SegmentationEvalReport",
    "engine.segmentation.finetune": "SegmentReport",
    "engine.train_tokenizer": "TrainTokenizerReport",
    "errors": "BeitError DataError DistributedError DivergedError Interrupted SignalStop Stopped StorageError "
    "UsageError",
    "tokenizers.base": "Tokenizer",
}
_MODULE_OF = {name: f"beitcli.{module}" for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # or a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'beitcli' has no attribute '{name}'")
        from importlib import import_module

        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value  # the next access does not come here
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

"""A command that does not compile does without torch's compiler, and one that does still finds it whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = """
import sys
from beitcli.cli.app import main
from beitcli.runtime.deferred_compiler import defer_compiler

defer_compiler()
assert main(sys.argv[1:]) == 0
"""


def printed(code: str, *words: object) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_of_a_model_load_neither_the_compiler_nor_sympy(
    finetuned_run: Path, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    image = labelled_folder / "red" / "00.jpg"
    absent = COMMAND + "assert not {'torch._dynamo', 'sympy'} & {*sys.modules}\n"
    assert "label" in printed(absent, "predict", finetuned_run, image, "--workers", 0)
    assert "tokens" in printed(absent, "tokenize", image, "--tokenizer", tokenizer_run, "--workers", 0)
    printed(absent, "embed", finetuned_run, image, "-o", tmp_path / "features.npy", "--workers", 0)
    printed(absent, "attn-map", image, "--model", finetuned_run, "-o", tmp_path / "map.html")


def test_a_training_loads_neither_the_compiler_nor_sympy(labelled_folder: Path, tmp_path: Path) -> None:
    absent = COMMAND + "assert not {'torch._dynamo', 'sympy', 'torch.distributed.fsdp'} & {*sys.modules}\n"
    words = ["--recipe", "tiny", "--steps", 2, "--batch-size", 4, "--workers", 0]
    pretrained, classifier = tmp_path / "pretrained", tmp_path / "classifier"
    made = printed(absent, "pretrain", labelled_folder, *words, "--tokenizer-steps", 2, "--out", pretrained)
    assert made.strip() == str(pretrained)
    printed(absent, "finetune", labelled_folder, *words, "--init", pretrained, "--out", classifier)


def test_the_compiler_is_whole_when_it_is_used() -> None:
    code = """
from beitcli.runtime.deferred_compiler import defer_compiler, meta_device
defer_compiler()
import sys
import timm, timm.optim, torch, torchvision
with meta_device():
    assert timm.create_model("beit_base_patch16_224").blocks[0].attn.qkv.weight.is_meta
assert "torch._dynamo" not in sys.modules
boxes = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0]])
torch.use_deterministic_algorithms(True)
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).eq(1).all()
torch.compiler.disable(len)
assert torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)(torch.ones(2)).eq(2).all()
assert sys.modules["torch._dynamo"].utils.is_compile_supported("cpu")
print(timm.__spec__.loader is timm.__loader__, timm.models.naflexvit.__name__)
"""
    assert printed(code).split() == ["True", "timm.models.naflexvit"]


def test_timm_finds_the_hub_s_client_when_it_asks_for_it() -> None:
    code = """
from beitcli.runtime.deferred_compiler import defer_compiler
defer_compiler()
import sys
import timm
from timm.models import load_model_config_from_hf
assert "huggingface_hub" not in sys.modules
from timm.models._hub import has_hf_hub
print(has_hf_hub(necessary=True), "huggingface_hub" in sys.modules, timm.models._hub._has_hf_hub)
try:
    load_model_config_from_hf("no/such", cache_dir="/nonexistent")
except Exception as error:
    print(type(error).__module__.split(".")[0])
"""
    assert printed(code).split() == ["True", "True", "True", "huggingface_hub"]


def test_a_package_that_needs_more_of_the_compiler_gets_it(tmp_path: Path) -> None:
    """A torchvision of another release, which uses the compiler as it is imported."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import part\n")
    (package / "part.py").write_text("import torch._dynamo.config\nlimit = torch._dynamo.config.recompile_limit\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from beitcli.runtime.deferred_compiler import defer_compiler
defer_compiler()
import torchvision
print(torchvision.part.limit > 0)
"""
    assert printed(code).strip() == "True"


def test_timm_imports_no_wandb_and_it_can_be_imported_later(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("print('imported')\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from beitcli.runtime.deferred_compiler import defer_compiler
defer_compiler()
import timm, timm.optim, timm.utils
print(hasattr(sys.modules["timm.utils.summary"], "wandb"))
import wandb
"""
    assert printed(code).split() == ["False", "imported"]


def test_a_network_without_initial_values_has_its_buffers_and_its_norms() -> None:
    code = """
from beitcli.runtime.deferred_compiler import defer_compiler, uninitialized_parameters
defer_compiler()
import sys
import timm, torch
before = torch.get_rng_state()
make = lambda: timm.create_model("beit_base_patch16_224", embed_dim=16, depth=1, num_heads=2)
with uninitialized_parameters():
    model = make()
assert torch.equal(torch.get_rng_state(), before) and "sympy" not in sys.modules
whole = make()
for name, buffer in whole.named_buffers():
    assert torch.equal(buffer, model.get_buffer(name)), name
assert model.blocks[0].norm1.weight.eq(1).all() and model.blocks[0].norm1.bias.eq(0).all()
print(len(list(whole.buffers())))
"""
    assert int(printed(code)) >= 1

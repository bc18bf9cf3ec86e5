"""What only a GPU can show; these need CUDA and are left out elsewhere.

The step is compiled by default on CUDA, which takes longer than all else here: what is not about that runs without.
"""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from beitcli.config.architecture import Architecture
from beitcli.data.caches.token_cache import TokenCache
from beitcli.data.transforms.base import IMAGENET_MEAN, IMAGENET_STD, normalize
from beitcli.data.transforms.color_jitter import apply_color
from beitcli.data.transforms.finetuning import erase
from beitcli.engine.events import ignore
from beitcli.engine.mim.token_caching import CachingTokenizer
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.runtime.compute.attention_choice import AttentionChoice, apply_choice, candidates
from beitcli.runtime.compute.attention_trial import MAX_ERROR, AttentionShape, benchmark_kernels
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.sdpa_backend import attention, padded_bias
from beitcli.runtime.distributed.data_parallel import parallel
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.storage.checkpoint import newest_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

TINY = ("--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--batch-size", 8, "--device", "cuda")
TINY += ("--no-compile",)


def test_tokenize_computes_in_fp32_on_a_gpu_too(beit, labelled_folder, tokenizer_run):
    words = ("tokenize", labelled_folder, "--tokenizer", tokenizer_run, "--device", "cuda")
    assert beit(*words).out == beit(*words, "--precision", "fp32").out


def test_seeds_of_cpu_generators_stay_on_the_cpu_under_ddp():
    """On their way to the device and back they would hold up every step of a discrete VAE in several processes."""

    class Seeded(nn.Linear):
        def forward(self, images, seeds):
            assert seeds.device.type == "cpu"
            return super().forward(images) * seeds.tolist()[0]

    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = parallel(Seeded(3, 2).cuda(), DistributedContext(size=2))  # of a group of one
        model(torch.ones(4, 3, device="cuda"), torch.tensor([3])).sum().backward()
        assert model.module.weight.grad is not None
    finally:
        dist.destroy_process_group()


def test_normalize_waits_for_no_device(nothing_waits):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device="cuda")
    normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    with nothing_waits():
        assert normalize(images, IMAGENET_MEAN, IMAGENET_STD).is_cuda


def test_erasing_waits_for_no_device_and_gives_what_a_cpu_gives(nothing_waits):
    boxes = torch.tensor([[0, 0, 0, 0], [2, 1, 7, 5], [0, 0, 8, 3]], dtype=torch.int32)
    noise, images = torch.randn(3 * (5 * 4 + 8 * 3)), torch.zeros(3, 3, 8, 8)
    on_cpu = erase(images.clone(), boxes, noise)
    there = [tensor.cuda() for tensor in (images, boxes, noise)]
    erase(*there)
    with nothing_waits():
        made = erase(*there)
    assert torch.equal(made.cpu(), on_cpu)


def test_apply_color_waits_for_no_device_and_gives_what_a_cpu_gives(nothing_waits):
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    colors = torch.tensor([1.2, -0.5, 0, 255, 0.9, 0.1, 4, 0, 250]).repeat(4, 1)
    on_cpu = apply_color(images, colors, IMAGENET_MEAN, IMAGENET_STD)
    images, colors = images.cuda(), colors.cuda()
    apply_color(images, colors, IMAGENET_MEAN, IMAGENET_STD)
    with nothing_waits():
        made = apply_color(images, colors, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.allclose(made.cpu(), on_cpu, atol=1e-5)


@pytest.mark.parametrize("head", ["faster-rcnn", "mask-rcnn"])
def test_detection_runs_and_is_measured(tmp_path, beit, head):
    run = tmp_path / "run"
    words = (
        "--recipe",
        "tiny-detect",
        "--head",
        head,
        "--limit",
        40,
        "--split",
        "val",
        "--size",
        32,
        "--device",
        "cuda",
        "--no-compile",
    )
    made = beit("finetune", "sample", "--init", "random", *words, "--steps", 4, "--batch-size", 8, "--out", run)
    assert made.code == 0, made.err
    assert beit("eval", run, "sample", "--limit", 16, "--device", "cuda").code == 0


def test_segmentation_runs_and_is_measured(tmp_path, beit):
    run = tmp_path / "run"
    words = ("--recipe", "tiny-segment", "--limit", 40, "--size", 32, "--device", "cuda")
    made = beit("finetune", "sample", "--init", "random", *words, "--steps", 4, "--batch-size", 8, "--out", run)
    assert made.code == 0, made.err
    assert beit("eval", run, "sample", "--limit", 16, "--multi-scale", "--flip", "--device", "cuda").code == 0
    assert beit("predict", run, "sample", "--limit", 4, "--device", "cuda", "-o", tmp_path / "masks").code == 0


def test_new_tokens_leave_the_device_without_waiting_and_all_are_kept(tmp_path, nothing_waits):
    cache = TokenCache(tmp_path, {"of": "a test"}, 4, 16)
    caching = CachingTokenizer(cache, lambda part: part["token_images"].long(), 8, ignore)

    def batch(number: int) -> dict[str, torch.Tensor]:
        places = torch.tensor([[0, 2 * number + row, 7] for row in range(2)])
        rows = {"visual_tokens": torch.full((2, 4), -1), "token_place": places}
        return {name: tensor.cuda() for name, tensor in rows.items()} | {
            "token_images": torch.full((2, 4), number % 16, dtype=torch.uint8, device="cuda")
        }

    caching.fill_tokens(batch(0))  # the first of each shape may allocate
    later = [batch(number) for number in range(1, 20)]
    with nothing_waits():
        for each in later[:4]:
            assert caching.fill_tokens(each)["visual_tokens"].is_cuda
    for each in later[4:]:
        caching.fill_tokens(each)
    caching.flush()
    assert cache.written == 40
    assert [cache.row(0, index, 7).tolist() for index in (0, 21, 39)] == [[0] * 4, [10] * 4, [3] * 4]


def test_dry_run_tells_the_micro_batch_that_a_run_finds(beit, labelled_folder, tokenizer_run):
    words = ("pretrain", labelled_folder, *TINY, "--tokenizer", tokenizer_run, "--workers", 0)
    ended = beit(*words, "--steps", 6, "--dry-run", "--json")
    assert ended.code == 0
    assert ended.lines[-1]["plan"]["micro-batch"] == "8 (1 a step)"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_pretraining_runs_and_goes_on(tmp_path, beit, labelled_folder, tokenizer_run, precision):
    run = tmp_path / "run"
    words = ("pretrain", labelled_folder, *TINY, "--tokenizer", tokenizer_run, "--precision", precision, "--workers", 2)
    assert beit(*words, "--steps", 6, "--save-every", 3, "--out", run).code == 0
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    assert beit("pretrain", "--out", run, "--resume").code == 0
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.trainer["step"] == 6


@pytest.mark.parametrize(("precision", "others"), [("fp32", 0), ("tf32", 2), ("bf16", 2)])
def test_finetune_and_eval_agree(tmp_path, beit, labelled_folder, precision, others):
    """Batches of other sizes take other kernels, whose rounding may turn an image or two of the 24 around."""
    words = ("finetune", labelled_folder, "--init", "random", "--recipe", "tiny", "--size", 32, "--steps", 3)
    words += ("--val", labelled_folder, "--device", "cuda", "--no-compile", "--precision", precision)
    ended = beit(*words, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    measured = beit("eval", tmp_path / "run", labelled_folder, "--device", "cuda")
    assert measured.code == 0, measured.err
    assert abs(measured.lines[0]["top1"] - ended.lines[0]["top1"]) <= (others + 0.01) / 24


def test_a_micro_batch_is_found_and_kept(tmp_path, beit, labelled_folder, tokenizer_run):
    words = ("pretrain", labelled_folder, *TINY, "--tokenizer", tokenizer_run, "--workers", 0)
    run = tmp_path / "run"
    assert beit(*words, "--steps", 6, "--log-every", 3, "--out", run).code == 0
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.trainer["micro_batch"] == 8


@pytest.mark.parametrize(
    ("kernel", "has_bias", "length"),
    [
        (kernel, has_bias, length)
        for kernel, has_bias in (
            ("flash", False),
            ("efficient", False),
            ("cudnn", False),
            ("math", False),
            ("efficient", True),
            ("math", True),
        )
        for length in (197, 192, 576, 577, 65)
    ]
    + [("flex", True, 197), ("flex", True, 65)],  # each is compiled, forward and backward, for all and for some rows
)
def test_an_attention_kernel_is_finite_and_near_fp32(kernel, has_bias, length):
    """The output and each gradient, of all rows and of a third of them; left out where it is no candidate here."""
    kernels, left_out = candidates(has_bias, torch.backends.cudnn.version())
    if kernel not in kernels:
        pytest.skip(left_out[kernel])
    torch._dynamo.reset()
    shape = AttentionShape(2, 4, length, 64, has_bias, queries=length // 3, depth=2)
    tried = benchmark_kernels([kernel], shape, torch.bfloat16, torch.device("cuda"))
    assert not tried.left_out
    assert 0 < tried.errors[kernel] <= MAX_ERROR[torch.bfloat16]
    assert tried.milliseconds[kernel] > 0


class Operators(TorchDispatchMode):
    """Notes the operators that are called, and the strides of the bias of memory-efficient attention."""

    def __init__(self):
        super().__init__()
        self.names, self.strides = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        if function is torch.ops.aten._scaled_dot_product_efficient_attention.default:
            self.strides.append(args[3].stride() if args[3] is not None else None)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("narrow", [False, True])
def test_memory_efficient_attention_copies_no_padded_bias(narrow):
    query, key = (torch.randn(3, 2, rows, 64, device="cuda").bfloat16() for rows in (75 if narrow else 197, 197))
    rows = torch.rand(3, 197, device="cuda").argsort(dim=1)[:, :75] if narrow else None
    bias = padded_bias(torch.randn(2, 197, 197, device="cuda", requires_grad=True))
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), Operators() as called:
        attention(query, key, key, bias, rows)
    assert not [name for name in called.names if "pad" in name]
    (strides,) = called.strides
    assert (strides[0] == 0) != narrow  # broadcast where it is the same for all images
    assert all(stride % 8 == 0 for stride in strides[:-1])


@pytest.fixture
def attention_flags():
    cuda = torch.backends.cuda
    before = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    order = torch._C._get_sdp_priority_order()
    yield
    cuda.enable_flash_sdp(before[0])
    cuda.enable_mem_efficient_sdp(before[1])
    cuda.enable_cudnn_sdp(before[2])
    torch._C._set_sdp_priority_order(order)


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_a_chosen_kernel_is_called_and_fp32_beside_it_takes_the_efficient_one(attention_flags, kernel):
    kernels, left_out = candidates(False, torch.backends.cudnn.version())
    if kernel not in kernels:
        pytest.skip(left_out[kernel])
    apply_choice(AttentionChoice(kernel, kernel))
    for dtype, name in ((torch.bfloat16, kernel), (torch.float32, "efficient")):
        query, key, value = torch.randn(3, 2, 4, 197, 64, device="cuda", dtype=dtype)
        with Operators() as called:
            attention(query, key, value, None)
        assert any(f"scaled_dot_product_{name}_attention" in each for each in called.names), called.names


def small_model(positions: str) -> MaskedImageModel:
    torch.manual_seed(0)
    shape = Architecture(image_size=(224, 224), width=128, depth=3, heads=2, positions=positions, layer_scale=1.0)
    return MaskedImageModel(shape, 64).cuda()


@pytest.mark.parametrize("positions", ["absolute", "shared"])
def test_a_model_chooses_its_attention(attention_flags, positions):
    torch._dynamo.reset()
    model = small_model(positions)
    choice = model.choose_attention(4, Compute(torch.device("cuda"), "bf16"), queries=75)
    print(choice.describe())
    assert choice.kernel in choice.milliseconds
    assert "trial" not in choice.left_out
    assert torch.backends.cuda.cudnn_sdp_enabled() == (choice.fallback == "cudnn")
    assert {block.attn.use_flex for block in model.blocks} == {choice.kernel == "flex"}
    if positions == "shared":
        assert model.shared_bias().shape == (2, 197, 200)


@pytest.mark.filterwarnings("ignore")  # torch's compiler has advice on every card
@pytest.mark.parametrize(
    ("positions", "kernel"),
    [
        ("absolute", "flash"),
        ("shared", "flex"),
        ("per-block", "efficient"),
    ],
)
def test_a_compiled_model_has_the_gradients_of_fp32_with_each_attention(attention_flags, positions, kernel):
    torch._dynamo.reset()
    model, images, gradients = small_model(positions), torch.randn(4, 3, 224, 224, device="cuda"), []
    predicted = torch.rand(4, 196, device="cuda").argsort(dim=1)[:, :75]
    with sdpa_kernel(SDPBackend.MATH):
        model(images, None, predicted).square().mean().backward()
    gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    apply_choice(AttentionChoice(kernel, "efficient" if kernel == "flex" else kernel))
    for block in model.blocks:
        block.attn.use_flex = kernel == "flex"
    if positions == "shared":
        model.pads_bias = True
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        logits = torch.compile(model, fullgraph=True, dynamic=False)(images, None, predicted)
    logits.float().square().mean().backward()
    gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    expected, ours = gradients
    assert expected.keys() == ours.keys()
    for name, each in expected.items():
        if each.norm() > 0:
            assert (ours[name] - each).norm() / each.norm() < 0.03, name  # on a CPU bf16 gives up to 0.009

"""The discrete VAE and its objective, against published counts and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

from beitcli.errors import StorageError, UsageError
from beitcli.tokenizers.dvae import DiscreteVAE
from beitcli.tokenizers.dvae_loss import (
    codebook_usage,
    dvae_loss,
    gumbel_softmax,
    kl_to_uniform,
    logit_laplace_nll,
    mae,
    map_pixels,
    psnr,
    reconstruction_loss,
    unmap_pixels,
    usage_kl,
)
from beitcli.tokenizers.dvae_network import DVAEArchitecture

SMALL = DVAEArchitecture(
    vocab_size=16, width=8, groups=3, blocks_per_group=2, decoder_init_width=8, init_gain=2**0.5, output_channels=3
)
ZERO_SEED = 1423  # one of the first 8,192 uniform numbers of this seed is 0


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model() -> DiscreteVAE:
    return DiscreteVAE(SMALL)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_default_architecture_has_dalle_parameter_counts() -> None:
    with torch.device("meta"):
        dalle = DiscreteVAE(DVAEArchitecture())
    assert count(dalle.encoder) == 53_786_240
    assert count(dalle.decoder) == 43_829_766
    assert len(dalle.encoder.state_dict()) == 74
    assert dalle.vocab_size == 8192
    assert dalle.downsample == 8
    assert dalle.architecture.residual_gain == 1 / 64


def test_dalle_encoder_gives_14_by_14_logits_for_112_pixels() -> None:
    with torch.device("meta"):
        logits = DiscreteVAE(DVAEArchitecture()).token_logits(torch.empty(1, 3, 112, 112))
    assert logits.shape == (1, 8192, 14, 14)


def test_encode_and_decode_have_the_grid_of_the_image(model: DiscreteVAE) -> None:
    images = torch.rand(2, 3, 16, 24)
    tokens = model.encode(images)
    assert tokens.shape == (2, 24)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens.unflatten(1, (4, 6)), model.token_logits(images).argmax(dim=1))
    decoded = model.decode(tokens, (4, 6))
    assert decoded.shape == images.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_decode_equals_the_decoder_on_one_hot_codes(model: DiscreteVAE) -> None:
    tokens = torch.randint(16, (2, 12))
    codes = one_hot(tokens.unflatten(1, (3, 4)), 16).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(model.decode(tokens, (3, 4)), unmap_pixels(model.decoder(codes).sigmoid()))


def test_decoder_enlarges_features_before_each_later_group(model: DiscreteVAE) -> None:
    def block(bottleneck: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
        residual = features
        for conv in bottleneck.convs:
            residual = conv(residual.relu())
        return bottleneck.skip(features) + bottleneck.gain * residual

    decoder = model.require_decoder()
    codes = torch.randn(2, 16, 3, 4).softmax(dim=1)
    features = decoder.stem(codes)
    for number, group in enumerate(decoder.groups):
        if number:
            features = features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        for bottleneck in group:
            features = block(bottleneck, features)
    torch.testing.assert_close(decoder(codes), decoder.head(features.relu()))


def test_encoder_alone_gives_the_same_tokens_and_no_pictures(model: DiscreteVAE) -> None:
    alone = DiscreteVAE(SMALL, decoder=False)
    assert set(alone.state_dict()) == {f"encoder.{name}" for name in model.encoder.state_dict()}
    alone.encoder.load_state_dict(model.encoder.state_dict())
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(alone.encode(images), model.encode(images))
    with pytest.raises(StorageError, match="has no decoder"):
        alone.decode(torch.zeros(1, 16, dtype=torch.int64), (4, 4))


@pytest.mark.parametrize(
    "change", [{"vocab_size": 0}, {"groups": 0}, {"width": 6}, {"output_channels": 4}, {"init_gain": 0.0}]
)
def test_architecture_refuses_what_cannot_be_built(change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        DVAEArchitecture(**change)


def test_pixel_map_by_hand() -> None:
    pixels = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(map_pixels(pixels), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(unmap_pixels(torch.tensor([0.1, 0.5, 0.9])), pixels)
    torch.testing.assert_close(unmap_pixels(torch.tensor([0.0, 0.3, 1.0])), torch.tensor([0.0, 0.25, 1.0]))


def test_encoder_sees_mapped_pixels(model: DiscreteVAE) -> None:
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(model.token_logits(images), model.encoder(0.8 * images + 0.1))


def test_kl_is_zero_for_uniform_and_log_v_for_one_code() -> None:
    uniform = torch.full((2, 8, 2, 3), 1.7)
    torch.testing.assert_close(kl_to_uniform(uniform), torch.zeros(2, 2, 3))
    certain = torch.zeros(1, 8, 1, 1)
    certain[:, 3] = 1000.0
    torch.testing.assert_close(kl_to_uniform(certain), torch.full((1, 1, 1), math.log(8)))


def test_kl_by_hand() -> None:
    logits = torch.tensor([0.75, 0.25]).log().view(1, 2, 1, 1)
    assert kl_to_uniform(logits).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_usage_kl_is_zero_for_even_use_of_certain_codes() -> None:
    certain = 1000.0 * one_hot(torch.arange(4)).float().t().view(1, 4, 2, 2)
    assert usage_kl(certain).item() == pytest.approx(0.0, abs=1e-6)
    assert kl_to_uniform(certain).mean().item() == pytest.approx(math.log(4))
    same = certain[:, :, :1, :1].expand(1, 4, 2, 2)
    assert usage_kl(same).item() == pytest.approx(math.log(4))


def test_logit_laplace_by_hand() -> None:
    pixel, mean, log_scale = torch.tensor([0.8]), torch.tensor([1.0]), torch.tensor([math.log(0.5)])
    by_hand = math.log(2 * 0.5 * 0.8 * 0.2) + abs(math.log(4) - 1.0) / 0.5
    assert logit_laplace_nll(pixel, mean, log_scale).item() == pytest.approx(by_hand)


def test_logit_laplace_density_integrates_to_one() -> None:
    pixels = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    mean, log_scale = torch.full_like(pixels, 0.4), torch.full_like(pixels, -0.7)
    assert (-logit_laplace_nll(pixels, mean, log_scale)).exp().mean().item() == pytest.approx(1.0, abs=1e-5)


def test_reconstruction_loss_compares_mapped_pixels() -> None:
    images, decoded = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)  # 0.9 against sigmoid(0) = 0.5
    assert reconstruction_loss(images, decoded, "mse").item() == pytest.approx(0.16)
    assert reconstruction_loss(images, decoded, "l1").item() == pytest.approx(0.4)


def test_logit_laplace_loss_takes_mean_then_log_scale() -> None:
    images = torch.full((1, 3, 1, 1), 0.5)
    decoded = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).view(1, 6, 1, 1)  # logit(0.5) = 0, so only ln(2 b x (1 - x))
    assert reconstruction_loss(images, decoded, "logit-laplace").item() == pytest.approx(math.log(0.5) + 1.0)


def test_gumbel_softmax_draws_from_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1).expand(1, 3, 100, 100)
    codes = gumbel_softmax(logits, 0.01)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(1, 100, 100))
    shares = one_hot(codes.argmax(dim=1).flatten(), 3).float().mean(dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.02, rtol=0)
    assert codes.amax(dim=1).mean() > 0.98


def test_gumbel_softmax_follows_the_global_seed() -> None:
    logits = torch.randn(1, 4, 2, 2)
    torch.manual_seed(5)
    first = gumbel_softmax(logits, 0.5)
    torch.manual_seed(5)
    assert torch.equal(first, gumbel_softmax(logits, 0.5))


def test_gumbel_noise_is_finite_where_the_generator_draws_zero() -> None:
    uniform = torch.empty(4, 4, 512).uniform_(generator=torch.Generator().manual_seed(ZERO_SEED))
    assert (uniform == 0).any()
    logits = torch.zeros(1, 512, 4, 4, requires_grad=True)
    codes = gumbel_softmax(logits, 1.0, torch.tensor([ZERO_SEED]))
    codes.square().sum().backward()
    assert codes.isfinite().all()
    assert logits.grad.isfinite().all()


def test_gumbel_noise_of_an_image_depends_on_its_seed_alone() -> None:
    logits = torch.randn(1, 4, 2, 3).expand(3, 4, 2, 3)
    codes = gumbel_softmax(logits, 0.5, torch.tensor([7, 8, 7]))
    assert torch.equal(codes[0], codes[2])
    assert not torch.equal(codes[0], codes[1])
    last = logits.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gumbel_softmax(last[1:2], 0.5, torch.tensor([8])), codes[1:2])


def test_codebook_usage_by_hand() -> None:
    used, perplexity = codebook_usage(torch.tensor([5, 5, 0, 5, 5]))
    assert used == 4
    assert perplexity == pytest.approx(4.0)
    assert codebook_usage(torch.tensor([0, 9])) == (1, 1.0)


def test_psnr_and_mae_by_hand() -> None:
    assert psnr(0.01) == pytest.approx(20.0)
    assert psnr(0.0) == math.inf
    assert mae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.75])).item() == pytest.approx(0.375)


@pytest.mark.parametrize(("kind", "channels"), [("mse", 3), ("l1", 3), ("logit-laplace", 6)])
def test_gradient_reaches_every_parameter(kind: str, channels: int) -> None:
    model = DiscreteVAE(DVAEArchitecture(vocab_size=8, width=8, groups=2, blocks_per_group=1, output_channels=channels))
    loss, metrics = dvae_loss(model, torch.rand(4, 3, 8, 8), 1.0, 0.1, kind, usage_weight=0.1)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert not any(figure.requires_grad for figure in metrics.values())
    parts = metrics["reconstruction"] + 0.1 * metrics["kl"] + 0.1 * metrics["usage_kl"]
    torch.testing.assert_close(metrics["loss"], parts)


def test_training_lowers_the_error_and_uses_many_codes(model: DiscreteVAE) -> None:
    shades = torch.rand(32, 3, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    error_before = mae(shades, model.decode(model.encode(shades), (4, 4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for step in range(60):
        optimizer.zero_grad()
        dvae_loss(model, shades, 1.0 - step / 70, 5e-5, "mse", usage_weight=3e-3)[0].backward()
        optimizer.step()
    tokens = model.encode(shades)
    assert mae(shades, model.decode(tokens, (4, 4))) < 0.8 * error_before
    assert codebook_usage(torch.bincount(tokens.flatten(), minlength=16))[0] >= 8

"""The codec: shapes, scaling, chunks, loading by name, and the bundled autoencoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DModel
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_models import tiny_vae

from eqm_video import codec as module
from eqm_video.codec import Codec
from eqm_video.data.dead_leaves import dead_leaves
from eqm_video.errors import UserError
from eqm_video.models.pixels import PixelAutoencoder
from eqm_video.randomness import generator

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny_kl(**options) -> AutoencoderKL:
    return tiny_vae(**{"shift_factor": 0.25, **options})


def tiny_tiny() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 3, 8, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("make", "downsampling"), [(tiny_kl, 2), (tiny_tiny, 4)])
def test_shapes_and_range(make, downsampling, pixels):
    codec = Codec(make())
    assert (codec.downsampling, codec.latent_channels) == (downsampling, 4)
    small = (8 // downsampling, 16 // downsampling)
    moments = codec.moments(pixels)
    assert moments.shape == (2, 3, 8, *small)
    latents = codec.encode(pixels)
    assert latents.shape == (2, 3, 4, *small)
    decoded = codec.decode(latents * 50)
    assert decoded.shape == pixels.shape
    assert decoded.abs().max() <= 1
    assert not decoded.requires_grad


def test_latents_follow_the_config_and_frames_are_independent(pixels):
    vae = tiny_kl()
    codec = Codec(vae)
    with torch.no_grad():
        posterior = vae.encode(pixels[1, 2][None]).latent_dist
        raw = (posterior.mean - 0.25) * 0.5
        back = vae.decode(raw / 0.5 + 0.25).sample.clamp(-1, 1)
    latents = codec.encode(pixels)
    torch.testing.assert_close(latents[1, 2], raw[0])
    torch.testing.assert_close(codec.decode(latents)[1, 2], back[0])
    moments = codec.moments(pixels)
    torch.testing.assert_close(moments[1, 2], torch.cat([posterior.mean, posterior.logvar], dim=1)[0])


def test_missing_shift_is_zero_and_per_channel_statistics_count(pixels):
    plain = Codec(tiny_kl(scaling_factor=1.0, shift_factor=None))
    raw = plain.encode(pixels)
    torch.testing.assert_close(raw, plain.moments(pixels)[:, :, :4])
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    codec = Codec(tiny_kl(scaling_factor=2.0, shift_factor=None, latents_mean=mean, latents_std=std))
    column = [torch.tensor(values)[:, None, None] for values in (mean, std)]
    torch.testing.assert_close(codec.encode(pixels), (raw - column[0]) * 2.0 / column[1])
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), plain.decode(raw), atol=1e-5, rtol=1e-5)


def test_posterior_samples_come_from_each_clips_generator(pixels):
    codec = Codec(tiny_kl())
    moments = codec.moments(pixels)
    both = codec.sample(moments, [generator("clip", k) for k in range(2)])
    alone = codec.sample(moments[1:], [generator("clip", 1)])
    assert torch.equal(both[1:], alone)
    noise = torch.randn(3, 4, 4, 8, generator=generator("clip", 1))
    mean, log_variance = moments[1].chunk(2, dim=1)
    torch.testing.assert_close(alone[0], (mean + (0.5 * log_variance).exp() * noise - 0.25) * 0.5)
    assert not torch.equal(both, codec.sample(moments))
    half = codec.sample(moments.half())  # cached moments may be half precision
    assert half.dtype == torch.float32


def test_chunks_and_autocast_do_not_change_the_result(pixels, monkeypatch):
    vae = tiny_kl()
    whole = Codec(vae).encode(pixels)
    torch.testing.assert_close(Codec(vae, chunk=1).encode(pixels), whole, atol=1e-6, rtol=1e-5)
    sizes = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda frames: sizes.append(len(frames)) or encode(frames))
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 4 * 8 * 16)
    Codec(vae, chunk=5).encode(pixels)
    assert sizes == [4, 2]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = Codec(vae).encode(pixels)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, whole, atol=1e-6, rtol=1e-5)


def test_tiny_autoencoder_has_no_posterior(pixels):
    codec = Codec(tiny_tiny())
    assert (codec.moments(pixels)[:, :, 4:] == -30).all()
    drawn = codec.encode(pixels, [generator(0), generator(1)])
    torch.testing.assert_close(drawn, codec.encode(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [tiny_kl, tiny_tiny])
def test_local_folders(make, tmp_path, pixels):
    vae = make()
    vae.save_pretrained(tmp_path / "plain")
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    expected = Codec(vae).encode(pixels)
    for name in ("plain", "pipeline"):
        codec = Codec.load(tmp_path / name)
        assert type(codec.vae) is type(vae)
        assert codec.name == str(tmp_path / name)
        assert torch.equal(codec.encode(pixels), expected)


def test_half_precision_files_become_float32(tmp_path, pixels):
    tiny_kl().half().save_pretrained(tmp_path)
    codec = Codec.load(tmp_path)
    assert {value.dtype for value in codec.vae.parameters()} == {torch.float32}
    assert codec.decode(codec.encode(pixels)).dtype == torch.float32
    double = Codec.load(tmp_path, torch_dtype=torch.float64)
    assert double.encode(pixels).dtype == torch.float64
    assert not any(value.requires_grad for value in codec.vae.parameters())


def break_files(folder, change):
    if change == "class":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    elif change == "json":
        (folder / "config.json").write_text("no json")
    elif change == "no config":
        (folder / "config.json").unlink()
    elif change == "no weights":
        (folder / WEIGHTS).unlink()
    elif change == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])
    else:
        weights = load_file(folder / WEIGHTS)
        if change == "missing weight":
            weights.pop("encoder.conv_in.bias")
        elif change == "surplus weight":
            weights["extra"] = torch.ones(1)
        else:
            weights["encoder.conv_in.bias"] = torch.ones(9)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("class", "VQModel.*AutoencoderKL, AutoencoderTiny and PixelAutoencoder"),
        ("json", "not the JSON configuration"),
        ("no config", "neither config.json nor vae/config.json"),
        ("no weights", "safetensors"),
        ("truncated", "cannot load"),
        ("missing weight", "another architecture.*encoder.conv_in.bias"),
        ("surplus weight", "another architecture.*extra"),
        ("shape", "cannot load.*conv_in.bias"),
    ],
)
def test_broken_folders_are_refused_with_a_sentence(change, says, tmp_path):
    tiny_kl().save_pretrained(tmp_path)
    break_files(tmp_path, change)
    with pytest.raises(UserError, match=says):
        Codec.load(tmp_path)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="UNet2DModel"):
        Codec(UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)))
    with pytest.raises(UserError, match="RGB"):
        Codec(tiny_kl(in_channels=4))
    with pytest.raises(UserError, match="at least 1"):
        Codec(tiny_kl(), chunk=0)


def test_hub_ids(monkeypatch, tmp_path):
    def offline(*arguments, **options):
        raise LocalEntryNotFoundError("cannot connect")

    monkeypatch.setattr(module, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"owner/name.*hf download owner/name.*bundled"):
        Codec.load("owner/name")
    with pytest.raises(UserError, match="is not a folder"):
        Codec.load("nothing-here")

    tiny_kl().save_pretrained(tmp_path / "vae")

    def in_subfolder(name, file, subfolder=None, revision=None):
        if subfolder is None:
            response = type("Response", (), {"headers": {}, "request": None, "status_code": 404, "text": ""})()
            raise RemoteEntryNotFoundError("404", response=response)
        return str(tmp_path / "vae" / file)

    loaded = []
    monkeypatch.setattr(module, "hf_hub_download", in_subfolder)
    monkeypatch.setattr(module, "load_weights", lambda *given, **options: loaded.append((given, options)) or tiny_kl())
    assert Codec.load("owner/name", revision="main").name == "owner/name"
    (model_class, source, _), options = loaded[0]
    assert (model_class, source, options["subfolder"]) == (AutoencoderKL, "owner/name", "vae")


@pytest.mark.parametrize(
    ("shape", "says"),
    [((1, 1, 3, 8, 9), r"8x9.*multiples of 2.*8x8"), ((1, 1, 4, 8, 8), "3, H, W"), ((1, 3, 8, 8), "B, T, 3, H, W")],
)
def test_wrong_pixels(shape, says):
    with pytest.raises(UserError, match=says):
        Codec(tiny_kl()).encode(torch.zeros(shape))
    with pytest.raises(UserError, match="uint8"):
        Codec(tiny_kl()).encode(torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="latents"):
        Codec(tiny_kl()).decode(torch.zeros(1, 1, 3, 4, 4))


def test_nearest_size():
    codec = Codec(tiny_tiny())
    assert [codec.nearest_size(size, 2) for size in (1, 11, 13, 64)] == [8, 8, 16, 64]


def test_pixels_are_their_own_latents(pixels, tmp_path):
    codec = Codec.load("pixels")
    assert (codec.name, codec.downsampling, codec.latent_channels) == ("pixels", 1, 3)
    assert torch.equal(codec.moments(pixels)[:, :, :3], pixels)
    assert torch.equal(codec.encode(pixels), pixels) and torch.equal(codec.decode(pixels), pixels)
    assert codec.decode(3 * pixels).abs().max() == 1
    drawn = codec.encode(pixels, [generator(0), generator(1)])
    assert (drawn - pixels).abs().max() < 5e-6  # far below a step of 8-bit pixels
    codec.vae.save_pretrained(tmp_path / "vae")
    for place in (tmp_path, tmp_path / "vae"):
        loaded = Codec.load(place, torch_dtype=torch.float64)
        assert isinstance(loaded.vae, PixelAutoencoder) and loaded.decode(pixels.double()).dtype == torch.float64
    assert loaded.to("cpu", torch.float32).device == torch.device("cpu")
    with pytest.raises(ValueError, match="leave the arguments"):
        PixelAutoencoder(scaling_factor=0.5)


def test_bundled_codec_reconstructs_procedural_pictures():
    codec = Codec.load("bundled")
    assert (codec.name, codec.downsampling, codec.latent_channels) == ("bundled", 4, 4)
    assert (module.BUNDLED_FOLDER / WEIGHTS).stat().st_size < 4.2e6
    pictures = np.stack([dead_leaves(np.random.default_rng(seed), 64, 64) for seed in range(1000, 1004)])
    pixels = torch.from_numpy(pictures).movedim(-1, -3).float().div(127.5).sub(1)[None]
    latents = codec.encode(pixels)
    error = (codec.decode(latents) - pixels).square().mean()
    assert 10 * torch.log10(4 / error) > 22  # dB
    assert 0.5 < latents.std() < 2


def test_an_encoder_in_bf16_loses_little_and_changes_no_weight() -> None:
    codec = Codec.load("bundled")
    picture = torch.from_numpy(dead_leaves(np.random.default_rng(0), 32, 32))
    pixels = picture.permute(2, 0, 1)[None, None].float() / 127.5 - 1
    exact = codec.moments(pixels)
    codec.encoding = torch.bfloat16
    rounded = codec.moments(pixels)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    error = (rounded - exact)[:, :, :4].square().mean().sqrt() / exact[:, :, :4].std()
    assert 1e-4 < error < 0.03
    assert {weight.dtype for weight in codec.vae.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):  # a run's own precision is not that of its codec
        codec.encoding = torch.float32
        assert torch.equal(codec.moments(pixels), exact)

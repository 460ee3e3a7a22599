"""Reference weights in, our saved network out: what is read, what is refused, and that OUT is whole or absent."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eqm_video import cli
from eqm_video.commands.convert import main, read_names
from eqm_video.core.decay import TruncatedDecay
from eqm_video.errors import UserError
from eqm_video.models.convert import convert, convert_weights, key_names
from eqm_video.models.layers import position_table
from eqm_video.models.transformer import EqMTransformer
from eqm_video.sampling.pipeline import EqMPipeline

FIXTURE = Path(__file__).parent / "fixtures" / "official_eqm" / "official_state_dict.safetensors"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return load_file(FIXTURE)


def sample_of(folder: Path, **options) -> Tensor:
    model = EqMTransformer.from_pretrained(folder, torch_dtype=torch.float64)
    clips = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(clips, torch.tensor([1, 10]), **options).sample


def test_sizes_are_read_off_the_weights(tmp_path: Path) -> None:
    convert(FIXTURE, tmp_path / "out", num_heads=4)
    model = EqMTransformer.from_pretrained(tmp_path / "out")
    sizes = {"in_channels": 4, "patch_size": 2, "hidden_size": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 4.0}
    flags = {"num_labels": 10, "temporal": False, "conditioned_on_gamma": False}
    assert dict(model.config).items() >= (sizes | flags).items()
    assert os.listdir(tmp_path) == ["out"]  # nothing is left beside it


def test_the_last_layer_keeps_the_first_half_of_every_patch_pixel_negated(weights: dict[str, Tensor]) -> None:
    model = convert_weights(weights, num_heads=4)
    theirs, ours = weights["final_layer.linear.bias"], model.head.linear.bias
    for pixel in range(4):
        assert torch.equal(ours[pixel * 4 : pixel * 4 + 4], -theirs[pixel * 8 : pixel * 8 + 4])
    kept = [pixel * 8 + channel for pixel in range(4) for channel in range(4)]
    assert torch.equal(model.head.linear.weight, -weights["final_layer.linear.weight"][kept])
    halved = weights | {
        f"final_layer.linear.{part}": weights[f"final_layer.linear.{part}"][kept] for part in ("weight", "bias")
    }
    again = convert_weights(halved, num_heads=4)  # a source without the unused half
    assert torch.equal(again.head.linear.weight, model.head.linear.weight)


def test_all_weights_arrive(weights: dict[str, Tensor]) -> None:
    own = convert_weights(weights, num_heads=4).state_dict()
    names = key_names(depth=3)
    assert set(names.values()) == set(own) and set(names) == set(weights) - {"pos_embed"}
    for theirs, ours in names.items():
        if ours.startswith("head.linear"):
            continue
        assert torch.equal(own[ours].flatten(), weights[theirs].flatten()), theirs


@pytest.mark.parametrize("form", ["ema", "model", "plain", "both", "module", "namespace", "legacy"])
def test_forms_of_checkpoints(tmp_path: Path, weights: dict[str, Tensor], form: str) -> None:
    wrong = {key: torch.zeros_like(value) for key, value in weights.items()}
    contents = {
        "ema": {"ema": weights},
        "model": {"model": weights, "steps": 3},
        "plain": weights,
        "both": {"model": wrong, "ema": weights, "opt": {"state": {0: {"step": torch.tensor(1.0)}}}},
        "module": {"ema": {f"module.{key}": value for key, value in weights.items()}},
        "namespace": {"ema": weights, "args": argparse.Namespace(model="EqM-XL/2", uncond=True)},
        "legacy": {"ema": weights},
    }[form]
    torch.save(contents, tmp_path / "source.pt", _use_new_zipfile_serialization=form != "legacy")
    convert(tmp_path / "source.pt", tmp_path / "out", num_heads=4)
    convert(FIXTURE, tmp_path / "direct", num_heads=4)
    assert torch.equal(sample_of(tmp_path / "out"), sample_of(tmp_path / "direct"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(tmp_path: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    save_file({key: value.to(dtype) for key, value in weights.items()}, tmp_path / "source.safetensors")
    for temporal in (False, True):
        out = tmp_path / f"out{temporal}"
        convert(tmp_path / "source.safetensors", out, num_heads=4, temporal=temporal)
        stored = load_file(out / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in stored.values()} == {dtype}


def test_a_video_network_starts_as_the_image_network(tmp_path: Path) -> None:
    for name, temporal in (("image", False), ("video", True), ("again", True)):
        convert(FIXTURE, tmp_path / name, num_heads=4, temporal=temporal)
    assert torch.equal(sample_of(tmp_path / "video"), sample_of(tmp_path / "image"))
    stored, again = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("video", "again"))
    assert stored["blocks.2.temporal.qkv.weight"].std() > 0  # it can learn: only the gate is zero
    assert all(torch.equal(stored[key], again[key]) for key in stored)


def test_conversion_leaves_the_random_numbers_alone(weights: dict[str, Tensor]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    convert_weights(weights, num_heads=4, temporal=True)
    assert torch.equal(before, torch.get_rng_state())


def reference_layout(width: int, depth: int, labels: int = 2) -> dict[str, Tensor]:
    """Empty weights (in storage of one number each) in the reference's layout, at any size."""
    linears = {
        "x_embedder.proj": (width, 4, 2, 2),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (32, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for block in range(depth):
        linears |= {
            f"blocks.{block}.attn.qkv": (3 * width, width),
            f"blocks.{block}.attn.proj": (width, width),
            f"blocks.{block}.mlp.fc1": (4 * width, width),
            f"blocks.{block}.mlp.fc2": (width, 4 * width),
            f"blocks.{block}.adaLN_modulation.1": (6 * width, width),
        }
    made = {"pos_embed": position_table(4, 4, width, torch.device("cpu"), torch.float32)[None]}
    made["y_embedder.embedding_table.weight"] = torch.zeros(1).expand(labels + 1, width)
    for name, shape in linears.items():
        made[f"{name}.weight"] = torch.zeros(1).expand(shape)
        made[f"{name}.bias"] = torch.zeros(1).expand(shape[0])
    return made


def test_heads_come_from_the_preset_of_equal_width_and_depth() -> None:
    assert convert_weights(reference_layout(128, 4)).config.num_heads == 4  # EqM-Nano
    assert convert_weights(reference_layout(384, 12)).config.num_heads == 6  # EqM-S
    assert convert_weights(reference_layout(384, 12), num_heads=12).config.num_heads == 12
    with pytest.raises(UserError, match=r"no preset has width 128 and depth 5, .* add --num-heads N"):
        convert_weights(reference_layout(128, 5))


def test_heads_are_required_outside_the_presets(weights: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match="no preset has width 48 and depth 3"):
        convert_weights(weights)
    for heads in (5, 0, -4):
        with pytest.raises(UserError, match=f"--num-heads {heads} does not divide the width 48"):
            convert_weights(weights, num_heads=heads)


def edited(weights: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """The weights with some replaced, added, or (None) left out; `__` stands for a dot."""
    changed = weights | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in changed.items() if value is not None}


def test_other_layouts_are_refused_by_name(weights: dict[str, Tensor]) -> None:
    swapped = weights["pos_embed"].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    cubic = torch.zeros(48, 4, 4, 2, 2)
    cases = {
        r"missing: blocks\.1\.attn\.proj\.bias$": {"blocks__1__attn__proj__bias": None},
        r"unexpected: blocks\.1\.attn\.q_norm\.weight$": {"blocks__1__attn__q_norm__weight": torch.ones(12)},
        r"missing: pos_embed$": {"pos_embed": None},
        r"missing: blocks\.3\.adaLN.* and 11 more": {"blocks__4__attn__proj__bias": torch.ones(48)},
        r"pos_embed is not the fixed sin-cos table .it differs by up to": {"pos_embed": swapped},
        r"pos_embed has shape \(1, 15, 48\)": {"pos_embed": weights["pos_embed"][:, :15]},
        r"differs by up to nan": {"pos_embed": weights["pos_embed"] * float("nan")},
        r"patches must be square and lie in one frame": {"x_embedder__proj__weight": cubic},
        r"final_layer.linear has 24 outputs; 4 channels in patches of 2 x 2 need 16, or 32": {
            "final_layer__linear__weight": torch.zeros(24, 48)
        },
        r"do not fit together: blocks.2.attn.qkv.weight gives \(96, 48\) where \(144, 48\)": {
            "blocks__2__attn__qkv__weight": torch.zeros(96, 48)
        },
        r"weights are torch.float16, torch.float32; they must all have the same floating-point dtype": {
            "final_layer__linear__weight": torch.zeros(32, 48).half()
        },
    }
    for sentence, changes in cases.items():
        with pytest.raises(UserError, match=sentence):
            convert_weights(edited(weights, **changes), num_heads=4)
    with pytest.raises(UserError, match="heads of even width"):  # 48 / 16 = 3
        convert_weights(weights, num_heads=16, temporal=True)
    without_blocks = {key: value for key, value in weights.items() if not key.startswith("blocks")}
    with pytest.raises(UserError, match=r"missing: blocks\.0\."):
        convert_weights(without_blocks, num_heads=4)
    with pytest.raises(UserError, match="not weights in the reference's layout"):
        convert_weights({"conv1.weight": torch.zeros(3)})


def test_a_rounded_position_table_is_the_same_table(weights: dict[str, Tensor]) -> None:
    for table in (weights["pos_embed"].bfloat16(), weights["pos_embed"].double() + 2e-8):
        convert_weights(weights | {"pos_embed": table}, num_heads=4)


def test_unreadable_sources_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    class Custom:
        pass

    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    torch.save(weights, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    globals()["Custom"], Custom.__qualname__ = Custom, "Custom"
    torch.save({"ema": weights, "args": Custom()}, tmp_path / "object.pt")
    torch.save({"epoch": 3, "net": weights}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    cases = {
        tmp_path / "absent.pt": "is not a file",
        tmp_path: "is not a file",
        written("weights.npz", b""): "ends in '.npz'; weights are read from .safetensors, .pt",
        written(
            "text.pt", b"no weights here"
        ): "text.pt is no whole torch checkpoint: it is neither a zip archive nor a pickle",
        written("empty.pt", b""): "cannot be read as a torch checkpoint",
        written("cut.pt", whole[: len(whole) // 2]): "cut.pt",
        written("cut.safetensors", FIXTURE.read_bytes()[:5000]): "cannot be read as safetensors",
        written("text.safetensors", b"no weights here"): "cannot be read as safetensors",
        tmp_path / "object.pt": r"holds a Python object \(.*Custom\), and loading that could run code. .* torch.save",
        tmp_path / "other.pt": "holds epoch, net; expected a state dict, at the top or under 'ema' or 'model'",
        tmp_path / "tensor.pt": "holds Tensor; expected a state dict",
    }
    for source, sentence in cases.items():
        with pytest.raises(UserError, match=sentence):
            convert(source, tmp_path / "out", num_heads=4)
    assert not (tmp_path / "out").exists()


def test_out_must_be_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    convert(FIXTURE, tmp_path / "empty", num_heads=4)
    convert(FIXTURE, tmp_path / "new" / "deep", num_heads=4)
    assert sample_of(tmp_path / "empty").equal(sample_of(tmp_path / "new" / "deep"))
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(UserError, match=r"choose a new or empty folder|is a file, not a folder"):
            convert(FIXTURE, taken, num_heads=4)
    with pytest.raises(UserError, match="cannot write"):
        convert(FIXTURE, tmp_path / "file" / "inside", num_heads=4)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: EqMTransformer, folder: Path) -> None:
        (Path(folder) / "config.json").write_text("{")
        raise OSError("No space left on device")

    monkeypatch.setattr(EqMTransformer, "save_pretrained", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        convert(FIXTURE, tmp_path / "out", num_heads=4)
    assert os.listdir(tmp_path) == []


def test_the_command_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [str(FIXTURE), str(tmp_path / "out"), "--num-heads", "4", "--temporal", "--conditioned-on-gamma"]
    assert not main(arguments)
    printed = capsys.readouterr().out
    assert "preset      none (width 48, depth 3, heads 4, patch 2)" in printed
    assert "dtype       float32" in printed
    model = EqMTransformer.from_pretrained(tmp_path / "out")
    assert f"parameters  {sum(weight.numel() for weight in model.parameters()):,}" in printed
    assert model.config.temporal and model.config.conditioned_on_gamma
    assert not main([*arguments[:1], str(tmp_path / "second"), *arguments[2:], "--temporal-every", "2"])
    assert EqMTransformer.from_pretrained(tmp_path / "second").config.temporal_every == 2
    with pytest.raises(UserError, match="--temporal-every 2 needs attention in time: add --temporal"):
        main([*arguments[:1], str(tmp_path / "third"), "--num-heads", "4", "--temporal-every", "2"])
    save_file({key: value.contiguous() for key, value in reference_layout(128, 4).items()}, tmp_path / "n.safetensors")
    assert not main([str(tmp_path / "n.safetensors"), str(tmp_path / "nano")])
    printed = capsys.readouterr().out
    assert "preset      EqM-Nano/2" in printed and f"model.preset=EqM-Nano/2 train.init_from={tmp_path}/nano" in printed


@pytest.mark.parametrize("place", ["", "transformer", "ema", "export/transformer", "checkpoints/step_00000002/ema"])
def test_a_model_of_ours_needs_no_conversion(tmp_path: Path, place: str) -> None:
    """A network, an export, a checkpoint, a run; and the file of weights in a network's folder."""
    source = tmp_path / "source"
    convert(FIXTURE, source / place, num_heads=4)
    for given in (source, source / place / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(UserError, match=r"holds a model of this project.* give train.init_from=.*nothing needs"):
            main([str(given), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    shutil.copy(FIXTURE, tmp_path / "EqM.safetensors")  # beside a run of ours
    main([str(tmp_path / "EqM.safetensors"), str(tmp_path / "out"), "--num-heads", "4"])
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_mistake_on_the_command_line_ends_with_one_sentence(tmp_path: Path, capsys) -> None:
    assert cli.main(["convert", str(tmp_path / "no.pt"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "is not a file" in said and said.count("\n") == 1


def test_a_codec_makes_a_whole_export(tmp_path: Path, capsys) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"label {k}" for k in range(10)) + "\n")
    words = [str(FIXTURE), str(tmp_path / "export"), "--num-heads", "4"]
    assert not main([*words, "--codec", "bundled", "--size", "32", "--labels", str(names)])
    assert f"sample with eqm-video sample {tmp_path / 'export'} --out samples" in capsys.readouterr().out
    pipeline = EqMPipeline.from_pretrained(tmp_path / "export")
    assert pipeline.labels[3] == "label 3" and pipeline.config.frames == 1
    assert pipeline.config.sampler["steps"] == 249 and pipeline.decay == TruncatedDecay(a=0.8, gain=4.0)
    plain = convert(FIXTURE, tmp_path / "network", num_heads=4)
    for name, weight in pipeline.transformer.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name].float())
    made = pipeline(labels=["label 3"], seeds=[0], steps=2, output_type="uint8").frames
    assert made.shape == (1, 1, 32, 32, 3)
    card = (tmp_path / "export" / "README.md").read_text()  # every export has one, and says what is not known
    assert card.count("official_state_dict.safetensors") == 1 and str(tmp_path) not in card and "\n# export\n" in card
    assert "images of 32x32 px; 10 labels." in card and "codec: bundled" in card and "the reference EqM code" in card
    assert cli.main(["push", str(tmp_path / "export"), "me/converted", "--dry-run"]) == 0
    assert cli.main(["push", "demo", "me/converted", "--dry-run"]) == 2
    assert "demo is the model that ships with the package" in capsys.readouterr().err


def test_a_path_with_a_space_is_quoted_in_the_line_to_type(tmp_path: Path, capsys) -> None:
    assert not main(
        [str(FIXTURE), str(tmp_path / "my export"), "--num-heads", "4", "--codec", "bundled", "--size", "32"]
    )
    assert f"eqm-video sample '{tmp_path / 'my export'}' --out samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--size", "32"], "--size and --labels belong to an export: add its codec"),
        (["--codec", "bundled", "--labels", "imagenet"], "--labels imagenet has 1000 names; the network has 10"),
        (["--codec", "bundled", "--size", "30"], "size"),
        (["--codec", "bundled", "--labels", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_parts_that_make_no_export_leave_nothing(words: list[str], sentence: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        main([str(FIXTURE), "out", "--num-heads", "4", *words])
    assert not (tmp_path / "out").exists()


def test_names_of_imagenet() -> None:
    names = read_names("imagenet")
    assert len(names) == len(set(names)) == 1000
    known = {
        0: "tench",
        207: "golden retriever",
        281: "tabby",
        388: "giant panda",
        980: "volcano",
        999: "toilet tissue",
    }
    assert all(names[number].startswith(name) for number, name in known.items())

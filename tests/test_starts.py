"""Starts of a training run: other draws of gamma, an image network, other labels; and runs with images."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_run import read_metrics, tiny_network, write_codec, write_images, write_videos

from eqm_video.cli import main as command_line
from eqm_video.errors import UserError
from eqm_video.models.convert import convert
from eqm_video.models.transformer import EqMTransformer
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.training.build import start_from

FIXTURE = Path(__file__).parent / "fixtures" / "official_eqm" / "official_state_dict.safetensors"


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_codec(folder / "codec")
    write_videos(folder / "videos", size=20)
    write_images(folder / "images", labels=("cat", "right", "tree"))
    return folder


def train(made: Path, run: Path, *more: str, kind: str = "videos") -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    words = [f"data.root={made / kind}", f"codec.name={made / 'codec'}", f"run.dir={run}", f"data.kind={kind}"]
    words += ["model.preset=EqM-Nano/2", "data.size=16", "data.workers=0", "train.batch_size=4", "train.steps=4"]
    words += ["data.latents=online"]
    words += ["train.log_every=2", "train.save_every=2", "preview.every=0", "sampler.steps=2", "run.report=false"]
    shape = ["frames=3", "data.frame_interval=2"] if kind == "videos" else ["frames=1", "model.temporal=false"]
    return command_line(["train", *words, *shape, *more])


def network_of(run: Path) -> EqMTransformer:
    return EqMPipeline.from_pretrained(run / "export").transformer


STAND = ("train.lr=1e-12", "train.ema=0")  # train without moving: the export is the start


# ------------------------------------------------------------------------------------------------------------- starts


def test_a_run_of_shared_gammas_is_tuned_with_the_mixture(made, tmp_path, capsys) -> None:
    shared, mixed = tmp_path / "shared", tmp_path / "mixed"
    assert train(made, shared, "train.lr=1e-2") == 0
    assert all(set(line["loss_by_mode"]) == {"shared"} for line in read_metrics(shared))
    assert train(made, shared, "gamma=mixture", "--resume", "train.steps=8") == 2
    assert "train.init_from=" in capsys.readouterr().err
    assert train(made, mixed, "gamma=mixture", f"train.init_from={shared}", "train.batch_size=16", *STAND) == 0
    modes = {mode for line in read_metrics(mixed) for mode in line["loss_by_mode"]}
    assert modes == {"shared", "context", "per_frame"}
    start, end = network_of(shared).state_dict(), network_of(mixed).state_dict()
    assert start.keys() == end.keys()
    for name, tensor in start.items():
        torch.testing.assert_close(end[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert any(".temporal_modulation" in name and tensor.any() for name, tensor in start.items())


def image_and_video(source: Path, folder: Path, **options: object) -> tuple[EqMTransformer, EqMTransformer, list[str]]:
    """An image network, and a new temporal one of its sizes that started from it."""
    # Copied, because a file's weights lie in memory as the file has them, where a CPU may add up in another order.
    image = copy.deepcopy(EqMTransformer.from_pretrained(source))
    sizes = {key: value for key, value in image.config.items() if not key.startswith("_")}
    torch.manual_seed(5)
    video = EqMTransformer(**{**sizes, "temporal": True, **options})
    return image, video, start_from(video, str(folder))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("start", ["image run", "converted", "converted with time"])
def test_a_video_network_starts_as_the_image_network_bit_for_bit(tmp_path, start, every) -> None:
    """At T = 1 the same numbers; longer, every frame as an image of its own: the gates of the temporal layers are 0."""
    source = tmp_path / "image"
    if start == "image run":
        tiny_network(temporal=False).save_pretrained(source)
    else:
        convert(FIXTURE, source, num_heads=4)
    folder = source
    if start == "converted with time":
        folder = tmp_path / "video"
        convert(FIXTURE, folder, num_heads=4, temporal=True, temporal_every=every)
    image, video, notes = image_and_video(source, folder, temporal_every=every)
    if start == "converted with time":
        with pytest.raises(UserError, match=f"temporal_every {every} there, {3 - every} here"):
            image_and_video(source, folder, temporal_every=3 - every)
    assert any("temporal layers start anew" in note for note in notes) == (start != "converted with time")
    clips = torch.randn(2, 5, image.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, times = torch.tensor([1, 0]), torch.tensor([[0, 1, 4, 5.5, 9]]).expand(2, -1)
    with torch.no_grad():
        for frame in range(5):
            one = clips[:, frame : frame + 1]
            assert torch.equal(video(one, labels).sample, image(one, labels).sample)
        whole, apart = video(clips, labels, times=times).sample, image(clips, labels).sample
    assert torch.equal(whole, apart) and whole.any()
    weights = dict(video.named_parameters())
    gates = [name for name in weights if "temporal_modulation" in name]
    assert gates and not any(weights[name].any() for name in gates)
    assert all(weights[name].any() for name in weights if "temporal.qkv.weight" in name)


def test_labels_keep_what_they_learned_by_their_names(made, tmp_path, capsys) -> None:
    """Image labels cat, right, tree; then videos of left, right with these images beside them."""
    images, joint, more = tmp_path / "images", tmp_path / "joint", [f"data.images={made / 'images'}"]
    assert train(made, images, "train.lr=1e-2", kind="images") == 0
    assert train(made, joint, *more, "data.image_fraction=0.5", f"train.init_from={images}", *STAND) == 0
    said = capsys.readouterr().out
    assert "has 3 labels, this run 4: 3 of the same name are kept, 1 start anew" in said
    assert "the temporal layers start anew" in said
    old, new = network_of(images).label_embed.weight, network_of(joint).label_embed.weight
    names = {name: place for place, name in EqMPipeline.from_pretrained(joint / "export").labels.items()}
    assert names == {"left": 0, "right": 1, "cat": 2, "tree": 3}
    for name, place in {"cat": 0, "right": 1, "tree": 2}.items():
        torch.testing.assert_close(new[names[name]], old[place], rtol=0, atol=1e-6)
    torch.testing.assert_close(new[4], old[3], rtol=0, atol=1e-6)  # the null label
    assert (new[0] - old).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("kind", ["export", "export/transformer", "checkpoint/ema", "network", "moved/ema"])
def test_labels_are_joined_by_name_wherever_the_source_lies_or_by_number_with_a_note(tmp_path, kind) -> None:
    """[right, still] into [left, right]: the names of an export or a checkpoint count for the folder in it, too."""
    names, source = {"id2label": {"0": "right", "1": "still"}}, tmp_path / kind
    place = tmp_path / kind if kind != "export" else source / "transformer"
    old = tiny_network(temporal=False)
    old.save_pretrained(place)
    if kind.startswith("export"):
        (tmp_path / "export" / "model_index.json").write_text(json.dumps(names))
    elif kind.startswith("checkpoint"):
        (tmp_path / "checkpoint" / "pipeline.json").write_text(json.dumps(names))
    new = tiny_network(seed=1)
    start = new.label_embed.weight.detach().clone()
    notes = start_from(new, str(source), ["left", "right"])
    table, theirs = new.label_embed.weight, old.label_embed.weight
    if kind in ("network", "moved/ema"):
        assert torch.equal(table, theirs)
        assert f"{source} names no labels: the 2 label embeddings are taken over by number" in notes
    else:
        assert torch.equal(table[0], start[0]) and torch.equal(table[1], theirs[0]) and torch.equal(table[2], theirs[2])
        assert any("1 of the same name are kept, 1 start anew" in note for note in notes)
        assert not any("by number" in note for note in notes)


def test_another_codec_unit_of_time_or_decay_is_reported(made, tmp_path, capsys) -> None:
    first, twin, other = tmp_path / "first", tmp_path / "twin", tmp_path / "other"
    shutil.copytree(made / "codec", twin)
    write_codec(other, seed=1)
    assert train(made, first) == 0
    checkpoint = first / "checkpoints" / "step_00000004"

    def told(source: Path, *more: str) -> list[str]:
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        capsys.readouterr()
        assert train(made, run, f"train.init_from={source}", "train.steps=1", *more) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(source))]

    for source in (first, checkpoint / "ema"):
        assert told(source) == told(source, f"codec.name={twin}") == []
        codec, unit, decay = told(source, f"codec.name={other}", "data.reference_fps=4", "objective.decay=linear")
        assert codec.endswith(f"this run {other}: the same frames may be other latents")
        assert unit.endswith("has the reference_fps 8, this run 4: the same times are other seconds")
        assert decay.endswith("another decay: a 0.8, gain 4.0, kind truncated there; gain 4.0, kind linear here")
    image = tmp_path / "image"
    assert train(made, image, "data.reference_fps=4", kind="images") == 0
    assert not any("reference_fps" in note for note in told(image))  # without temporal layers times are nothing to it


# -------------------------------------------------------------------------------------------- clips and images together


def joint(made: Path) -> list[str]:
    return [f"data.images={made / 'images'}", "data.image_fraction=0.5", "data.buckets=3x2,2x3", "gamma=mixture"]


def test_a_joint_run_knows_its_labels_and_resumes_on_the_same_images_alone(made, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert train(made, run, *joint(made), "preview.every=4", "preview.samples=3") == 0
    said = capsys.readouterr().out
    assert "clips of 3x2, 2x3 (frames x interval)" in said and "4 samples (2 clips, 2 images) a step" in said
    assert "6 of 6 files in " in said and "labels that only images have: cat, tree" in said
    assert "6 videos with 2 labels and 6 images beside them with 2 further labels; clips of" in said
    assert "a step = 1 process x 1 accumulated x 4" in said
    pipeline = EqMPipeline.from_pretrained(run / "export")
    assert pipeline.labels == {0: "left", 1: "right", 2: "cat", 3: "tree"}
    assert pipeline.config.frames == 3 and pipeline.config.fps == 4.0
    assert {mode for line in read_metrics(run) for mode in line["loss_by_mode"]} > {"image"}
    assert (run / "data_report_images.json").is_file() and (run / "data_report.json").is_file()
    with Image.open(run / "previews" / "step_00000004.gif") as grid:
        assert grid.n_frames == 3  # clips of data.frames, of the labels that videos have
    record = json.loads((run / "checkpoints" / "step_00000004" / "checkpoint.json").read_text())
    plain = {key: value for key, value in record["data"].items() if not key.endswith("identity")}
    assert plain == {"size": 6, "labels": ["left", "right", "cat", "tree"], "images": 6}
    elsewhere = tmp_path / "moved"
    shutil.copytree(made / "images", elsewhere)
    images = [*joint(made)[1:], f"data.images={elsewhere}", "train.steps=6", "--resume"]
    pixels = np.zeros((20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(elsewhere / "cat" / "9.png")
    assert train(made, run, *images) == 2
    error = capsys.readouterr().err
    assert "6 items and 6 images beside them with 4 labels when" in error and "7 images beside them with 4" in error
    (elsewhere / "cat" / "9.png").unlink()
    assert train(made, run, *images, "data.image_fraction=0.25") == 2
    assert "data.image_fraction (0.5 there, 0.25 here)" in capsys.readouterr().err
    assert train(made, run, *images, "data.buckets=3x2") == 2
    assert "data.buckets ([3x2, 2x3] there, [3x2] here)" in capsys.readouterr().err
    assert train(made, run, *images) == 0
    assert "note: changed" not in capsys.readouterr().out  # where the images lie is nobody's concern
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6]


def test_latents_in_memory_train_the_same_joint_run(made, tmp_path) -> None:
    online, memory = tmp_path / "online", tmp_path / "memory"
    assert train(made, online, *joint(made)) == 0
    assert train(made, memory, *joint(made), "data.latents=memory") == 0
    ours, theirs = network_of(memory).state_dict(), network_of(online).state_dict()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("latents", ["online", "memory"])
def test_single_frames_of_the_videos_are_images_too(made, tmp_path, latents) -> None:
    run = tmp_path / "run"
    assert train(made, run, "data.image_fraction=0.25", f"data.latents={latents}") == 0
    assert all(set(line["loss_by_mode"]) == {"shared", "image"} for line in read_metrics(run))
    assert EqMPipeline.from_pretrained(run / "export").labels == {0: "left", 1: "right"}


def test_forgotten_labels_and_flat_folders_of_images(made, tmp_path, capsys) -> None:
    assert train(made, tmp_path / "none", *joint(made), "data.labelled=false") == 0
    assert EqMPipeline.from_pretrained(tmp_path / "none" / "export").labels == {}
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted((made / "images").glob("*/*.png"))):
        shutil.copy(file, flat / f"{number}.png")
    assert train(made, tmp_path / "flat_run", *joint(made)[1:], f"data.images={flat}") == 0
    assert EqMPipeline.from_pretrained(tmp_path / "flat_run" / "export").labels == {0: "left", 1: "right"}
    capsys.readouterr()


def test_errors_about_the_images_name_their_key_and_advise_what_it_understands(made, tmp_path, capsys) -> None:
    videos, nowhere, empty = made / "videos", tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    for folder, sentence in (
        (videos, f"data.images: there are no images in {videos}, but videos: give a folder of images"),
        (nowhere, f"data.images: the folder {nowhere} does not exist"),
        (empty, f"data.images: there are no images in {empty}."),
    ):
        assert train(made, tmp_path / "wrong", *joint(made)[1:], f"data.images={folder}") == 2
        error = capsys.readouterr().err
        assert f"error: {sentence}" in error and f"{folder}/CLASS/n01443537_goldfish.JPEG" in error
        assert "data.kind" not in error and "data.split" not in error and "data folder" not in error

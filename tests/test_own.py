"""`train own FOLDER`: what is picked for a set of videos and a device, and that it trains."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_run import write_videos

from eqm_video.cli import main
from eqm_video.data.buckets import Bucket
from eqm_video.errors import UserError
from eqm_video.output.media import write_mp4
from eqm_video.training import own
from eqm_video.training.config import load_config
from eqm_video.training.options import parse
from eqm_video.training.run import note_fps

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

SMALL = ["model.preset=EqM-Nano/4", "data.size=16", "train.batch_size=2", "train.steps=1", "preview.samples=1"]
SMALL += ["sampler.steps=2"]


def folder_of(path: Path, count: int) -> Path:
    """Files that are named as videos: counting opens none."""
    path.mkdir(parents=True)
    for index in range(count):
        (path / f"{index:04d}.mp4").write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("count", "on_gpu", "recipe", "steps", "fraction"),
    [
        (3, False, "own_videos_cpu", 4000, None),
        (28, True, "own_videos", 20_000, 0.1),
        (200, False, "own_videos_cpu", 12_000, 0.1),
        (600, True, "own_videos", 100_000, 0.1),
    ],
)
def test_a_recipe_is_picked_by_device_and_size(count, on_gpu, recipe, steps, fraction, tmp_path) -> None:
    choice = own.choose(folder_of(tmp_path / "holiday clips", count), (), on_gpu)
    config = load_config(choice.recipe, choice.overrides)
    assert choice.recipe == recipe and (config.train.steps, config.data.latents) == (steps, "auto")
    assert config.held_out.fraction == fraction and config.train.save_every_minutes == 10
    assert config.data.root == str(tmp_path / "holiday clips") and config.run.dir == "runs/holiday clips"
    assert f"{count} videos and " in choice.said and f"{steps:,} steps" in choice.said
    typed = choice.said.splitlines()[1].strip()
    words = typed.removeprefix("eqm-video train ")
    again = parse(shlex.split(words))
    assert again.config_of_run() == config, "the line that is said can be typed"


def test_lists_hold_out_the_test_clips(real: Path) -> None:
    choice = own.choose(real / "actions", (), False)
    config = load_config(choice.recipe, choice.overrides)
    assert (config.data.split, config.held_out.split, config.held_out.fraction) == ("train", "test", None)


def test_the_advice_about_a_folder_of_pictures_can_be_typed(tmp_path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(2):
        Image.new("RGB", (16, 16), (90 * index, 0, 0)).save(tmp_path / "photos" / f"{index}.jpg")
    assert main(["train", "own", str(tmp_path / "photos"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "but images: type data.kind=images data.frames=1" in said
    words = said.partition("type ")[2].split()[:2]
    assert main(["train", "own", str(tmp_path / "photos"), *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 images and ") and "kind: images" in said and "  frames: 1" in said


def test_own_words_come_last_and_mistakes_are_sentences(tmp_path) -> None:
    folder = folder_of(tmp_path / "mine", 3)
    for words in (["own", str(folder)], ["--own", str(folder)]):
        config = parse([*words, "train.steps=7", "run.dir=elsewhere"]).config_of_run()
        assert (config.train.steps, config.run.dir, config.data.root) == (7, "elsewhere", str(folder))
        said = parse([*words, "train.steps=7", "run.dir=elsewhere"]).choice.said
        assert "own_videos_cpu, 7 steps" in said or "own_videos, 7 steps" in said
        assert said.endswith(f"data.root={folder} data.latents=auto train.steps=7 run.dir=elsewhere")
    many = folder_of(tmp_path / "many", 30)
    choice = own.choose(many, ["held_out.root=elsewhere", "frames=4"], False)
    assert (
        load_config(choice.recipe, choice.overrides).held_out.fraction is None and "held out as you say" in choice.said
    )
    for words, says in (
        (["own"], "train own needs the folder of your videos: type eqm-video train own FOLDER"),
        (["own", "--resume"], "train own needs the folder"),
        (["own", "data.root=x"], "train own needs the folder"),
        (["own", str(folder), "--config", "demo"], "--own picks the recipe, and --config gives one"),
        (["own", str(tmp_path / "none")], "none does not exist"),
    ):
        with pytest.raises(UserError, match=says):
            parse(words).config_of_run()


@pytest.mark.parametrize("name", ["-clips", "a=b"])
def test_a_folder_may_have_any_name(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(folder_of(tmp_path / "all" / name, 3).parent)
    options = parse(["own", name, "train.steps=7"])
    assert options.config_of_run().data.root == name and options.resume is None
    typed = options.choice.said.splitlines()[1].strip().removeprefix("eqm-video train ")
    assert parse(shlex.split(typed)).config_of_run() == options.config_of_run()


def test_it_trains_resumes_and_says_what_it_picked(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path / "my clips")
    small = ["model.preset=EqM-Nano/4", "frames=2", "data.frame_interval=1", "data.size=16", "train.batch_size=2"]
    small += ["train.steps=2", "preview.samples=1", "sampler.steps=2"]
    assert main(["train", "own", "my clips", *small]) == 0
    said = capsys.readouterr().out
    assert said.startswith(own.choose(Path("my clips"), small).said) and said.startswith("6 videos and ")
    typed = shlex.split(said.splitlines()[-1])
    assert typed[:2] == ["eqm-video", "sample"] and Path(typed[2]).is_dir() and typed[2] == "runs/my clips/export"
    assert main(["train", "own", "my clips", *small, "train.steps=3", "--resume"]) == 0
    assert "resuming" in capsys.readouterr().out


def videos_of(path: Path, lengths: list[int]) -> Path:
    """A flat folder of videos with so many frames."""
    path.mkdir()
    for index, length in enumerate(lengths):
        frames = np.full((length, 16, 16, 3), 9 * index, dtype=np.uint8)
        frames[np.arange(length), np.arange(length) % 16] = 220
        write_mp4(path / f"{index:02d}.mp4", frames, 25)
    return path


def dry(capsys, *words: str) -> tuple[str, dict]:
    """The sentence about the clips, and the recipe, of a dry run."""
    assert main(["train", *words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("  eqm-video train --config"))
    assert "frames=" in lines[start] and "data.frame_interval=" in lines[start]
    return lines[1], yaml.safe_load("\n".join(lines[start + 1 : -1]))["data"]


@pytest.mark.parametrize(
    ("lengths", "words", "clip", "says"),
    [
        (
            [12, 12, 12],
            [],
            (12, 1),
            "clips of 12 frames in a row, because 16 frames at data.frame_interval=3 would span 46 frames of a video, "
            "and all 3 videos have fewer; every video is long enough for these; for other clips type data.frames=6 "
            "data.frame_interval=1; the same as",
        ),
        (
            [32, 60],
            [],
            (16, 2),
            "and 1 of 2 videos has fewer; every video is long enough for these; for other clips type ",
        ),
        (
            [50] * 11 + [5],
            [],
            (16, 3),
            "clips of 16 frames at data.frame_interval=3; 1 of 12 videos is shorter and has",
        ),
        ([12, 12], ["frames=8"], (8, 1), "clips of 8 frames in a row, because 8 frames at data.frame_interval=3 "),
    ],
)
def test_clips_are_picked_that_nearly_all_videos_can_give(lengths, words, clip, says, tmp_path, capsys) -> None:
    folder = videos_of(tmp_path / "mine", lengths)
    said, data = dry(capsys, "own", str(folder), *words)
    assert (data["frames"], data["frame_interval"]) == clip and says in said
    assert sorted(tmp_path.iterdir()) == [folder] and len(list(folder.iterdir())) == len(lengths)
    if len(lengths) == 12:  # of which one may be too short, unless that is an error
        config = own.with_clips(own.choose(folder, ["data.short=error"])).config()
        assert (config.data.frames, config.data.frame_interval) == (5, 1)


def test_the_interval_shrinks_before_the_frames() -> None:
    wanted = Bucket(16, 3)
    picked = [own.fit([length], wanted) for length in (1, 2, 15, 16, 30, 31, 45, 46, 900)]
    assert (
        picked
        == [Bucket(*pair) for pair in ((2, 1), (2, 1), (15, 1), (16, 1), (16, 1))] + [Bucket(16, 2)] * 2 + [wanted] * 2
    )
    lengths = [5, 7, *[100] * 38]
    assert own.fit(lengths, wanted, 2) == wanted and own.fit(lengths, wanted, 1) == Bucket(7, 1)
    assert own.fit([12], wanted, keep_frame_interval=True) == Bucket(4, 3)
    assert own.fit([12], wanted, keep_frames=True) == Bucket(16, 1)
    assert own.reasons_of(wanted, wanted, [60, 60, 5], "skip") == (
        "clips of 16 frames at data.frame_interval=3; 1 of 3 videos is shorter and left out"
    )
    assert own.reasons_of(wanted, wanted, [60], "repeat").endswith("; every video is long enough for these")
    assert "span 46 frames of a video, and the video has fewer" in own.reasons_of(Bucket(9, 1), wanted, [9], "repeat")


def test_short_videos_train_and_a_later_one_changes_no_clips(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = videos_of(tmp_path / "mine", [6, 5, 5])
    assert main(["train", "own", "mine", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "\nclips of 5 frames in a row" in said and "clips of 5 frames, 16 px" in said
    (line,) = (line for line in said.splitlines() if line.startswith("  eqm-video train --config"))
    assert "data.frames=5 data.frame_interval=1" in line
    recipe = yaml.safe_load((tmp_path / "runs" / "mine" / "config.yaml").read_text())["data"]
    assert (recipe["frames"], recipe["frame_interval"]) == (5, 1)
    checkpoint = next((tmp_path / "runs" / "mine" / "checkpoints").iterdir())
    videos_of(tmp_path / "other", [90, 90, 90])
    longer = own.choose(tmp_path / "other", ["run.dir=runs/mine"])
    config = own.with_clips(longer, checkpoint=checkpoint).config()
    assert (config.data.frames, config.data.frame_interval) == (5, 1), "a run goes on with the clips that it began with"
    assert main(["train", "own", "mine", *SMALL, "train.steps=2", "--resume"]) == 0
    assert "resuming" in capsys.readouterr().out and len(list(folder.iterdir())) == 3
    monkeypatch.setattr(own, "HOLDABLE", 4)  # a further video is so many that a share is held out of a new run
    shutil.copy(folder / "00.mp4", folder / "more.mp4")
    assert main(["train", "own", "mine", *SMALL, "train.steps=3", "--resume"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("4 videos and ") and ", held out as when it began" in said.out
    assert "4 items with no labels now, other files than then (new: more.mp4); resume with the same data" in said.err
    typed = said.err.split(" type ")[1].split()
    assert main(["train", "own", "mine", *SMALL, *(word.replace("FOLDER", "runs/second") for word in typed)]) == 0
    assert "a tenth of them held out" in capsys.readouterr().out


@pytest.mark.parametrize("there", [False, True])
def test_what_the_user_sets_stays_and_a_refused_run_leaves_nothing(there, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = videos_of(tmp_path / "mine", [12, 12])
    if there:
        (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert main(["train", "own", "mine", *SMALL, "frames=16", "data.frame_interval=3"]) == 2
    said = capsys.readouterr()
    assert "data.frames=16 with data.frame_interval=3 spans 46 source frames, the longest video (00.mp4) has 12" in (
        said.err
    )
    assert said.out.startswith("2 videos and ") and "\nclips of" not in said.out
    assert main(["train", "own", "mine", *SMALL, "data.buckets=40x1"]) == 2
    assert "shorter than the clips of 40x1 in data.buckets" in capsys.readouterr().err
    assert main(["train", "own", "mine", *SMALL, "held_out.root=mine"]) == 2
    assert "held_out.root=mine is the folder that is trained on" in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 2
    assert (tmp_path / "runs" / "mine").is_dir() == (tmp_path / "runs").is_dir() == there
    assert not there or not list((tmp_path / "runs" / "mine").iterdir())


def test_a_recipe_is_named_by_the_first_word_as_by_config() -> None:
    config = parse(["--config", "demo", "train.steps=3"]).config_of_run()
    assert parse(["demo", "train.steps=3"]).config_of_run() == config != load_config(None, ["train.steps=3"])
    assert parse(["train.steps=3"]).config_of_run() == load_config(None, ["train.steps=3"])
    with pytest.raises(UserError, match=r"dmo is no file, and no recipe of that name"):
        parse(["dmo", "train.steps=3"]).config_of_run()
    with pytest.raises(UserError, match="--own picks the recipe"):
        parse(["--own", "videos", "demo"])


def test_videos_of_several_frame_rates_are_noted() -> None:
    def videos(*rates: float) -> SimpleNamespace:
        return SimpleNamespace(files=[("", -1, SimpleNamespace(fps=fps)) for fps in rates], frame_interval=3)

    (note,) = note_fps(videos(30, 60, 29.97), 10.0)
    assert note.startswith(
        "note: the videos have 29.97 to 60 fps, so clips with data.frame_interval=3 have 9.99 to 20;"
    )
    assert "samples have 10 fps unless --fps says otherwise" in note
    assert note_fps(videos(30, 29.97, 25.5), 10.0) == note_fps(videos(30), 10.0) == []


def test_a_network_that_nobody_named_is_noted() -> None:
    assert parse(["data.root=x"]).unnamed
    for words in (["demo"], ["--config", "demo"], ["model.preset=EqM-Nano/4"], ["--resume"], ["--dry-run"]):
        assert not parse([*words, "data.root=x"]).unnamed

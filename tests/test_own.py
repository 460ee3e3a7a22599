"""`train own FOLDER`: what is picked for a set of videos and a device, and that it trains."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tiny_run import write_videos

from eqm_video.cli import main
from eqm_video.errors import UserError
from eqm_video.training import own
from eqm_video.training.config import load_config
from eqm_video.training.options import parse

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


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


def test_it_trains_resumes_and_says_what_it_picked(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path / "mine")
    small = ["model.preset=EqM-Nano/4", "frames=2", "data.frame_interval=1", "data.size=16", "train.batch_size=2"]
    small += ["train.steps=2", "preview.samples=1", "sampler.steps=2"]
    assert main(["train", "own", "mine", *small]) == 0
    said = capsys.readouterr().out
    assert said.startswith(own.choose(Path("mine"), small).said) and said.startswith("6 videos and ")
    assert (tmp_path / "runs" / "mine" / "export").is_dir()
    assert main(["train", "own", "mine", *small, "train.steps=3", "--resume"]) == 0
    assert "resuming" in capsys.readouterr().out


def test_a_recipe_is_named_by_the_first_word_as_by_config() -> None:
    config = parse(["--config", "demo", "train.steps=3"]).config_of_run()
    assert parse(["demo", "train.steps=3"]).config_of_run() == config != load_config(None, ["train.steps=3"])
    assert parse(["train.steps=3"]).config_of_run() == load_config(None, ["train.steps=3"])
    with pytest.raises(UserError, match=r"dmo is no file, and no recipe of that name"):
        parse(["dmo", "train.steps=3"]).config_of_run()
    with pytest.raises(UserError, match="--own picks the recipe"):
        parse(["--own", "videos", "demo"])

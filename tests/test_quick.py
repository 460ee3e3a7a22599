"""Help and refusals without torch say what the true commands say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eqm_video import cli, options
from eqm_video.cli import completion, quick, snapshot
from eqm_video.commands import COMMANDS, explain
from eqm_video.errors import UserError
from eqm_video.training import recipes, strict_yaml
from eqm_video.training.config import Config, load_config, parse_config

ROOT = Path(__file__).resolve().parent.parent
ADVICE = "type `make options`, which writes eqm_video/assets/options.json, and commit it"


@pytest.fixture(scope="module")
def current() -> dict:
    return json.loads(snapshot.as_text(snapshot.snapshot()))


@pytest.mark.parametrize("name", [*COMMANDS, quick.RECIPE])
def test_the_stored_declarations_are_those_of_the_classes(name: str, current: dict) -> None:
    assert quick.stored().get(name) == current[name], ADVICE


def test_nothing_else_is_stored() -> None:
    assert sorted(quick.stored()) == sorted([*COMMANDS, quick.RECIPE]), ADVICE


def said(capsys: pytest.CaptureFixture, call) -> str:
    """The help that a call prints before it leaves, or the sentence with which it refuses."""
    try:
        call()
    except UserError as error:
        return str(error)
    except SystemExit as stopped:
        assert stopped.code == 0
        return capsys.readouterr().out
    return ""


WORDS = (["--help"], ["--help-all"], ["--nope"], ["--see", "many"], ["--seed=-1"], ["surplus=1", "a", "b", "c"], [])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_refusals_are_those_of_the_command(name: str, current: dict, capsys: pytest.CaptureFixture) -> None:
    cls, rebuilt = COMMANDS[name].options(), quick.rebuild(current[name]["class"])
    for words in WORDS:
        true = said(capsys, lambda words=words: options.parse(cls, words, prog=f"eqm-video {name}"))
        assert said(capsys, lambda words=words: options.parse(rebuilt, words, prog=f"eqm-video {name}")) == true
    assert "--help-all" in said(capsys, lambda: options.parse(rebuilt, ["-h"], prog=name))


def words_of(default: object) -> list[str]:
    return list(map(str, default)) if isinstance(default, tuple) else [str(default)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_keeps_its_kind_and_its_bounds(name: str, current: dict) -> None:
    """With equal declarations the parser, which is the same, refuses with equal sentences."""
    cls, rebuilt = COMMANDS[name].options(), quick.rebuild(current[name]["class"])
    true, stored = options.declared(cls), options.declared(rebuilt)
    assert list(true) == list(stored)
    for one, other in zip(true.values(), stored.values(), strict=True):
        assert (one.name, one.count, one.title, one.label) == (other.name, other.count, other.title, other.label)
        assert one.optional == other.optional and words_of(one.default) == words_of(other.default)
        assert one.type == other.type or (other.type is object and one.option.read)
        without = {"read": None, "metavar": None}
        assert dataclasses.replace(one.option, **without) == dataclasses.replace(other.option, **without)
        assert (one.option.read is None) == (other.option.read is None)


def sections() -> type:
    return quick.rebuild(quick.stored()[quick.RECIPE]["class"])


def test_keys_of_recipes_are_refused_in_the_same_words() -> None:
    rebuilt, aliases = sections(), quick.stored()[quick.RECIPE]["aliases"]
    flat = dict(strict_yaml.flatten(strict_yaml.to_tree(Config())))
    assert flat == dict(strict_yaml.flatten(strict_yaml.to_tree(rebuilt())))
    refused = 0
    for key in flat:
        for word in (f"{key}=many", f"{key}=-1e30", f"{key}x=1"):
            try:
                parse_config({}, [word])
                sentence = ""
            except UserError as error:
                sentence = str(error)
            try:
                strict_yaml.check_ranges(strict_yaml.parse(rebuilt, {}, [word], aliases))
            except UserError as error:
                assert str(error) == sentence
                refused += 1
    assert refused > 2 * len(flat)  # some values are refused by what a class alone knows


def test_every_recipe_that_ships_passes() -> None:
    for name in recipes.names():
        tree = strict_yaml.read_recipe(sections(), recipes.find(name))
        assert strict_yaml.to_tree(strict_yaml.parse(sections(), tree, [], {})) == strict_yaml.to_tree(
            load_config(name)
        )


LINES = [
    (["--version"], 0, "eqm-video "),
    (["smaple"], 2, "error: unknown command 'smaple'; did you mean sample? "),
    (["sample", "demo"], 2, "error: --out must be given; see eqm-video sample --help"),
    (["sample", "demo", "--out", "x", "--steps", "0"], 2, "error: --steps is 0: it must be "),
    (["sample", "demo", "--out", "x", "--known", "7:2"], 2, "error: --known: '7:2' is not a frame"),
    (["sample", "demo", "--out", "x", "--frame-schedule", "joitn"], 2, "error: --frame-schedule is joitn: it must be "),
    (["sample", "demo", "--outt", "x"], 2, "error: unknown option --outt: did you mean --out?"),
    (["adaptive", "demo", "--out", "x", "--fixed", "3"], 2, "error: --fixed is 3: it must be STEPS:STEP_SIZE"),
    (["compose", "demo", "--out", "x", "--terms", "Disc:x"], 2, "error: --terms is Disc:x: it must be [M/]LABEL:"),
    (["sample", "nowhere", "--out", "x"], 2, "error: nowhere is not a folder; give the folder of an export"),
    (["train"], 2, "error: data.root is not set: add data.root=FOLDER, the folder of your videos or images (a recipe "),
    (["train", "own"], 2, "error: train own needs the folder of your videos"),
    (["train", "--config", "nope"], 2, "error: nope is no file, and no recipe of that name"),
    (["train", "--config", "own_videos", "train.lt=1"], 2, "error: unknown key 'train.lt'; did you mean 'train.lr'?"),
    (["train", "own_videso"], 2, "error: own_videso is no file, and no recipe of that name"),
    (["train", "train.steps=many"], 2, "error: train.steps: expected a whole number, got 'many'"),
    (["train", "own_videos"], 2, "error: data.root is not set: add data.root=FOLDER"),
    (
        ["train", "demo", "objective.decay={kind:", "linear}"],
        2,
        "error: cannot read the override 'linear}': write section.key=value, such as train.lr=2e-4, and quote a value "
        "that has spaces: 'objective.decay={kind: linear}'",
    ),
    (["look", "--config", "own_videos", "--out", "x", "data.size=0"], 2, "error: data.size is 0: it must be "),
    (["doctor", "own_videso"], 2, "error: own_videso is no file"),
]


def test_none_of_it_imports_torch() -> None:
    """One process that is told everything; its last line says what it imported."""
    code = f"""
import contextlib, io, json, sys
from eqm_video.cli import main, quick
from eqm_video.commands import COMMANDS
def run(words):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(words)
        except SystemExit as stopped:
            status = stopped.code
    return [status, (out.getvalue() + err.getvalue())]
answers = [run(words) for words, *_ in {LINES!r}]
helps = [run([name, flag]) for name in COMMANDS for flag in ("--help", "--help-all")]
heavy = [name for name in ("torch", "numpy", "diffusers", "scipy", "transformers", "av", "PIL") if name in sys.modules]
print(json.dumps([answers, helps, heavy]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    answers, helps, heavy = json.loads(done.stdout)
    assert heavy == []
    for (words, status, start), answer in zip(LINES, answers, strict=True):
        assert answer[0] == status and answer[1].startswith(start) and answer[1].count("\n") == 1, (words, answer)
    assert all(status == 0 and text.startswith("usage: eqm-video ") for status, text in helps)


def test_the_list_of_metrics_needs_nothing_else() -> None:
    for words in (["--list"], ["FOLDER", "--list"]):
        quick.answer("evaluate", words)  # refuses nothing: the command itself shows the list
    with pytest.raises(SystemExit):
        quick.answer("evaluate", ["--list", "--help"])
    with pytest.raises(UserError, match="must be given"):
        quick.answer("evaluate", [])


def test_changed_declarations_are_left_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declarations of a source file count, not the work of its methods."""
    entry = quick.stored()["doctor"]
    for file in entry["sources"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((quick.PACKAGE / file).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(quick, "PACKAGE", tmp_path)
    path = tmp_path / "commands" / "doctor.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("    states = []\n", "    states = [BAD]\n"), encoding="utf-8")
    with pytest.raises(UserError, match="unknown option --nope"):
        quick.answer("doctor", ["--nope"])
    path.write_text(text.replace('metavar="RECIPE"', 'metavar="FILE"'), encoding="utf-8")
    quick.answer("doctor", ["--nope"])  # says nothing


def test_statements_of_a_source() -> None:
    first, last = "A = {\n    1: 2,\n}\n\n\n", "A += 3\n"
    text = f'{first}class B(C):\n    """Text."""\n\n    a: int = 1\n\n    def f(self):\n        a = 2\n\n\n{last}'
    assert quick.statement(text, "A") == first + last
    assert quick.statement(text, "B").rstrip().endswith("a: int = 1") and quick.statement(text, "C") == ""


COMPLETED = [
    (["sam"], {"sample"}),
    (["sample", "demo", "--guid"], {"--guidance-scale", "--guidance-interval"}),
    (["sample", "demo", "--sampler", "eu"], {"euler"}),
    (["sample", "demo", "--frame-schedule", "pyr"], {"pyramid"}),
    (["train", "--config", "own_videos_"], {"own_videos_cpu"}),
    (["sample", "demo", "--start-from", "clip"], {"clip.mp4"}),
    (["completion", "b"], {"bash"}),
    (["recipes", "own_videos_"], {"own_videos_cpu"}),
    (["train", "own_videos_"], {"own_videos_cpu"}),
    (["train", "ow"], {"own", "own_videos", "own_videos_cpu"}),
    (["train", "own", "fil"], {"films"}),
    (["explain", "data.lat"], {"data.latents"}),
    (["explain", "objective.decay.k"], {"objective.decay.kind"}),
    (["page", "de"], {"demo"}),
    (["page", "fil"], {"films"}),
    (["compose", "--write"], {"--write-data"}),
]


def test_the_keys_that_complete_are_those_that_are_explained() -> None:
    every = list(explain.every_key())
    offered = completion.keys(quick.rebuild(quick.stored()[quick.RECIPE]["class"]))
    assert offered >= {key.path for key in every} and all(explain.select(every, name) for name in offered)


def test_bash_completes_commands_options_recipes_and_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = [capsys.readouterr().out]
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "films").mkdir()
    for words, _ in COMPLETED:
        script.append(f"COMP_WORDS=(eqm-video {' '.join(words)}); COMP_CWORD={len(words)}; COMPREPLY=()")
        script.append("$(complete -p eqm-video | sed 's/.*-F \\([^ ]*\\) .*/\\1/') || true; echo \"${COMPREPLY[*]}\"")
    done = subprocess.run(["bash"], input="\n".join(script), capture_output=True, text=True, cwd=tmp_path, check=True)
    answers = [set(line.split()) for line in done.stdout.splitlines()]
    assert answers == [expected for _, expected in COMPLETED]

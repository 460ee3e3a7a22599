"""Options are declared once: one name, one meaning, and no number that makes no sense gets past the command line."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Literal

import pytest

from eqm_video import cli, options
from eqm_video.commands import COMMANDS, GROUPS
from eqm_video.commands.convert import Convert
from eqm_video.errors import UserError
from eqm_video.options import Declared, Option, declared, narrower, option
from eqm_video.page.launch import PageOptions
from eqm_video.sampling.options import SampleOptions
from eqm_video.training.cache import CacheOptions
from eqm_video.training.config import Config, parse_config
from eqm_video.training.merge import Merge
from eqm_video.training.options import TrainOptions

ROOT = Path(__file__).resolve().parent.parent
STUDIES = {name: command.options() for name, command in COMMANDS.items() if command.study}
CLASSES = STUDIES | {"cache": CacheOptions, "sample": SampleOptions, "train": TrainOptions, "convert": Convert}
CLASSES |= {"merge": Merge}
CLASSES |= {"page": PageOptions}
EVERY = [(name, one) for name, given in CLASSES.items() for one in declared(given).values()]
# Names with two or more meanings. labels: of what is sampled, those that clips have, and names for an export; clips:
# that are measured, that get files of their own, and that are shown; step_schedule: the sweep has one that goes by the
# model's decay; columns: clips beside each other in a grid, and states in a strip; samples: the folder of those that
# are compared, and how many predictions a clip has; steps: of a descent, and of a training; models: one, many; repeats:
# of what is timed, and of samples with other seeds; evaluations: of the curve of quality, and of each sampler.
SEVERAL = {"labels": 3, "clips": 3, "step_schedule": 2, "columns": 2, "samples": 3, "steps": 2, "models": 2}
SEVERAL |= {"repeats": 2, "evaluations": 3, "reference": 2, "fit_steps": 2}
# Options for which these are numbers like others.
ZERO = {
    *("seed", "mu", "guidance_scale", "history_guidance", "temperature", "start_gamma", "guidance_interval", "at"),
    *(
        "clips of sample",
        "frame_schedule",
        "guidance_scales",
        "start_gammas",
        "weight",
        "count of reconstruct",
        "descents",
        "scales",
        *("kl_weight", "perceptual"),
        *("redraws", "permutations"),
    ),
}
NEGATIVE = {"guidance_scale", "history_guidance", "weight"}
SENSELESS = ("0", "-1", "nan", "inf", "-inf", "1e30", "-1e30", "1e400", "many", "", "1,5", "0x10")


def meaning(study: type, name: str) -> Option:
    """The meaning of an option: the `Option` object that was declared, the same for all that inherit or repeat it."""
    bases = [base for base in study.__mro__ if name in vars(base).get("__annotations__", {})]
    homes = [base.__dataclass_fields__[name] for base in bases]
    found = {id(one.metadata["option"]): one.metadata["option"] for one in homes if "option" in one.metadata}
    assert len(found) == 1, f"{study.__name__}: --{name} is declared {len(found)} times"
    return found.popitem()[1]


@pytest.mark.parametrize("name", sorted({one.name for _, one in EVERY}))
def test_an_option_is_declared_in_one_place(name: str) -> None:
    having = [study for study in CLASSES.values() if name in declared(study)]
    meanings = {id(meaning(study, name)) for study in having}
    assert len(meanings) == SEVERAL.get(name, 1), f"--{name} has {len(meanings)} meanings"
    for study in having:
        own = study.__dataclass_fields__[name].metadata.get("narrower", {})
        _is_the_same(meaning(study, name), declared(study)[name], {"help", "metavar", "read"} - set(own))


def _is_the_same(first: Option, here: Declared, entries: set[str]) -> None:
    """These entries are equal; bounds and choices allow less or as much; the default is None, or within them."""
    for entry in entries:
        assert getattr(here.option, entry) == getattr(first, entry), entry
    assert set(here.option.words) <= set(first.words)
    assert not first.choices or set(here.option.choices) <= set(first.choices)
    inside = [("least", "least"), ("above", "above"), ("most", "most"), ("below", "below")]
    for mine, theirs in inside:
        value, bound = getattr(here.option, mine), getattr(first, theirs)
        assert bound is None or (value >= bound if mine in ("least", "above") else value <= bound)
    if here.default not in (None, dataclasses.MISSING):
        here.check(here.default, here.flag)


def words_of(study: type, tmp_path: Path) -> list[str]:
    """As few words as a study can be called with."""
    words = []
    for one in declared(study).values():
        if one.default is dataclasses.MISSING:
            value = str(tmp_path / "new") if one.name == "out" else "somewhere"
            words += [value] if one.option.positional else [f"{one.flag}={value}"]
    return words


# Words in which numbers are frames, labels, or names of files: tested with their tasks.
FRAMES = {"known", "known_mask", "keyframes", "composition"}
NUMERIC = [
    (name, one) for name, one in EVERY if (one.type in (int, float) or one.option.read) and one.name not in FRAMES
]


@pytest.mark.parametrize(("name", "one"), NUMERIC, ids=[f"{name} {one.flag}" for name, one in NUMERIC])
def test_numbers_without_sense_are_refused_before_anything_is_done(name, one, tmp_path, capsys) -> None:
    for text in SENSELESS:
        fine = (text == "0" and {one.name, f"{one.name} of {name}"} & ZERO) or (text == "-1" and one.name in NEGATIVE)
        words = [
            *words_of(CLASSES[name], tmp_path),
            *([one.flag, text, text] if one.count == 2 else [f"{one.flag}={text}"]),
        ]
        if fine:
            options.parse(CLASSES[name], words, prog="")
            continue
        assert cli.main([name, *words]) == 2, f"{one.flag} {text}"
        said = capsys.readouterr()
        assert said.err.startswith(f"error: {one.flag} is {text}") and said.err.count("\n") == 1, said.err
        assert ": it must be " in said.err and said.out == ""
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_on_a_screen_and_says_what_it_leaves_out(
    name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    said = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([name, flag])
        assert stopped.value.code == 0
        said[flag] = capsys.readouterr().out
    assert len(said["--help"].splitlines()) <= 60
    if name not in CLASSES:
        return
    rare = [one.flag for one in declared(CLASSES[name]).values() if one.option.rare]
    shown = [one.flag for one in declared(CLASSES[name]).values() if not (one.option.positional or one.option.rare)]
    assert all(re.search(rf"^  {flag}\b", said["--help"], re.MULTILINE) for flag in shown)
    assert all(re.search(rf"^  {flag}\b", said["--help-all"], re.MULTILINE) for flag in [*shown, *rare])
    hidden = len(rare) > 2  # a note on fewer would take more lines than they do
    assert all(bool(re.search(rf"^  {flag}\b", said["--help"], re.MULTILINE)) != hidden for flag in rare)
    assert (f"{len(rare)} more options: eqm-video {name} --help-all" in said["--help"]) == hidden
    titles = re.findall(r"^(\w[\w ]*):$", said["--help"], re.MULTILINE)
    ours = [title for title in titles if title in options.TITLES]
    assert ours == [title for title in options.TITLES if title in ours] and ours[0] == "what"


def test_every_title_is_one_of_the_list() -> None:
    assert {one.title for _, one in EVERY} == set(options.TITLES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_helps(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help-all"])
    said, study = capsys.readouterr().out, STUDIES[name]
    assert stopped.value.code == 0 and all(one.option.help for one in declared(study).values())
    assert all(one.option.positional or one.flag in said for one in declared(study).values())
    assert COMMANDS[name].group in GROUPS and study.name == name and study.record.endswith(".json")
    needed = [one.label for one in declared(study).values() if one.default is dataclasses.MISSING]
    if not needed:  # the demo would begin
        return
    with pytest.raises(UserError, match=f"^{' and '.join(needed)} must be given; see eqm-video {name} --help$"):
        study.main([])


def test_the_list_of_commands_imports_nothing_heavy() -> None:
    code = (
        "import sys; from eqm_video.cli import main; main(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.strip() == "False"
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert all(f"\n{title}:\n" in done.stdout for title in GROUPS.values())


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["convert", "--help"]])
def test_a_reader_who_leaves_early_gets_no_traceback(words: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command, env = [sys.executable, "-m", "eqm_video", *words], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env, check=False)
    os.close(writing)
    assert done.stderr == "" and done.returncode in (0, cli.READER_LEFT)  # argparse passes over a failed write


# Recipes ------------------------------------------------------------------------------------------------------------

SECTIONS = {
    entry.name: type(getattr(Config(), entry.name)) for entry in dataclasses.fields(Config) if not entry.metadata
}
KEYS = [
    f"{section}.{entry.name}"
    for section, cls in SECTIONS.items()
    for entry in dataclasses.fields(cls)
    if {int, float} & {*typing.get_args(typing.get_type_hints(cls)[entry.name]), typing.get_type_hints(cls)[entry.name]}
]
KEYS_ZERO = {
    *("model.label_std", "data.workers", "data.image_fraction", "objective.dispersion_weight", "train.seed"),
    *("train.weight_decay", "train.warmup", "train.min_lr_factor", "train.ema", "train.label_dropout"),
    *("held_out.gammas", "preview.every", "sampler.guidance_scale", "train.betas"),
}
KEYS_NEGATIVE = {"sampler.guidance_scale", "train.seed"}


@pytest.mark.parametrize("key", KEYS)
def test_numbers_without_sense_are_refused_in_recipes(key: str) -> None:
    for text in SENSELESS[:-1]:  # YAML reads numbers in other bases
        words = [f"{key}={text},{text}" if key == "train.betas" else f"{key}={text}"]
        if (text == "0" and key in KEYS_ZERO) or (text == "-1" and key in KEYS_NEGATIVE):
            parse_config({}, words)
        else:
            with pytest.raises(UserError, match=re.escape(key)) as caught:
                parse_config({}, words)
            assert "\n" not in str(caught.value)


def test_every_number_of_a_recipe_has_bounds() -> None:
    assert len(KEYS) > 30
    for key in KEYS:
        section, _, name = key.partition(".")
        assert name in declared(SECTIONS[section]), f"{key} has no option() with its bounds"


# The words of a command line ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Many:
    """Everything that options can be."""

    model: str = option(positional=True, metavar="MODEL", help="a model")
    steps: int = option(3, least=1, most=99, help="updates")
    step_size: float | str | None = option(None, above=0, words=("auto",), help="eta", unset="the model's")
    shift: float = option(0.0, help="of anything")
    labels: tuple[str, ...] | None = option(None, help="names")
    keyframes: tuple[str, ...] = option((), help="pictures")
    interval: tuple[float, float] | None = option(None, least=0, metavar=("A", "B"), help="a part")
    kind: Literal["one", "other"] = option("one", help="which")
    frames: int = option(1, least=1, help="frames")
    loud: bool = option(False, help="a switch")


class Fewer(Many):
    """As `Many`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Narrow(Many):
    """As `Many`, with another default, several values, and a tighter bound."""

    shift: tuple[float, ...] = (1.0, 2.0)
    steps: int = narrower(5, least=4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sectioned(Many):
    """As `Many`, with keys of a section for options."""

    sections: typing.ClassVar[tuple[str, ...]] = ("sampler",)


def parsed(text: str, cls: type = Many) -> Many:
    return options.parse(cls, ["MODEL", *text.split()], prog="PROG")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {"model": "MODEL", "steps": 3, "step_size": None, "labels": None, "keyframes": (), "loud": False}),
        ("--steps 7 --loud --kind other", {"steps": 7, "loud": True, "kind": "other"}),
        ("--steps=1e1", {"steps": 10}),
        ("--step-size auto", {"step_size": "auto"}),
        ("--step-size 1e-3", {"step_size": 1e-3}),
        ("--shift -2.5", {"shift": -2.5}),
        ("--shift -1e-3", {"shift": -1e-3}),
        ("--shift -.5", {"shift": -0.5}),
        ("--labels a b -x", {"labels": ("a", "b", "-x")}),
        ("--labels=-x", {"labels": ("-x",)}),
        ("--keyframes 0=a.png -1=end.png --steps 2", {"keyframes": ("0=a.png", "-1=end.png"), "steps": 2}),
        ("--interval 0 0.5", {"interval": (0.0, 0.5)}),
        ("--interv 0 0.5", {"interval": (0.0, 0.5)}),
    ],
)
def test_words_are_read(text: str, values: dict) -> None:
    found = vars(parsed(text))
    assert {name: found[name] for name in values} == values
    assert [type(found[name]) for name in values] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("--steps 0", "--steps is 0: it must be a whole number from 1 to 99"),
        ("--steps 2.5", "--steps is 2.5: it must be a whole number from 1 to 99"),
        ("--step-size nan", "--step-size is nan: it must be auto or a number above 0"),
        ("--step-size atuo", "--step-size is atuo: it must be auto or a number above 0"),
        ("--shift 1e30", r"--shift is 1e30: it must be a number, and no larger than 1e\+09"),
        ("--frames 1e30", r"--frames is 1e30: it must be a whole number of at least 1, and no larger than 1e\+12"),
        ("--interval 0 -1", "--interval is -1: it must be a number of at least 0"),
        ("--interval 0", "expected 2 arguments"),
        ("--kind ohter", r"--kind is ohter: it must be one of one, other \(did you mean other\?\)"),
        ("--stpes 4", "unknown option --stpes: did you mean --steps"),
        ("--steps", "expected one argument; see PROG --help"),
        ("--labels", "expected at least one argument"),
        ("surplus", "unrecognized arguments: surplus; see PROG --help"),
    ],
)
def test_mistakes_are_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        parsed(text)
    assert "\n" not in str(caught.value)


def test_sections_may_stand_for_options(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parsed("frames=2 sampler.step_size=0.5", Sectioned).frames == 2
    for text, sentence in (
        ("frame=2", r"unknown override 'frame=2'; did you mean frames=2\? "),
        ("labels=a", "'labels=a': --labels is an option, not an override"),
        ("loud=true", "'loud=true': --loud is an option"),
        ("frames=0", "--frames is 0: it must be a whole number of at least 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            parsed(text, Sectioned)
    with pytest.raises(UserError, match=r"unrecognized arguments: train\.frames=2"):
        parsed("train.frames=2", Sectioned)
    (tmp_path / "frames=2").touch()
    assert options.parse(Sectioned, ["frames=2"], prog="").model == "frames=2"


def test_an_option_declared_again_keeps_its_meaning() -> None:
    one, other = declared(Many), declared(Narrow)
    assert list(declared(Fewer)) == list(one) and list(other)[:2] == ["shift", "steps"]
    assert (other["shift"].count, other["shift"].option, other["shift"].default) == (
        "many",
        one["shift"].option,
        (1.0, 2.0),
    )
    assert parsed("--shift -1 2", Narrow).shift == (-1.0, 2.0) and parsed("", Narrow).steps == 5
    with pytest.raises(UserError, match="--steps is 3: it must be a whole number from 4 to 99"):
        parsed("--steps 3", Narrow)
    help_text = options.parser(Narrow, prog="PROG").format_help()
    assert "updates (from 4 to 99); default: 5" in help_text and "eta; default: the model's" in help_text
    assert help_text.split("options:")[0].endswith("MODEL          a model\n\n") or "a model" in help_text


def test_instances_have_the_same_bounds() -> None:
    options.check(Many(model="x", interval=(0, 1), step_size="auto"))
    for bad in ({"steps": 0}, {"steps": math.inf}, {"interval": (0.5, -1)}, {"kind": "third"}, {"step_size": 0}):
        with pytest.raises(UserError, match="it must be"):
            options.check(Many(model="x", **bad))
    with pytest.raises(UserError, match=r"^train\.steps is 0: "):
        options.check(Many(model="x", steps=0), prefix="train.")


def test_bounds_in_words() -> None:
    assert Declared("x", float, "one", None, Option(least=0, below=1)).says() == "a number of at least 0 and below 1"
    assert Declared("x", int, "one", None, Option(least=0, most=3)).says() == "a whole number from 0 to 3"
    assert Declared("x", float, "one", None, Option(kind="a size")).says() == "a size"

"""The keys of recipes explain themselves: each has its values, default and meaning, as the configuration has them."""

from __future__ import annotations

import pytest

from eqm_video.cli import main
from eqm_video.commands import explain
from eqm_video.training.config import Config, parse_config
from eqm_video.training.strict_yaml import flatten, to_tree

KEYS = {key.path: key for key in explain.every_key()}


def test_every_key_is_explained() -> None:
    assert set(dict(flatten(to_tree(Config())))) <= set(KEYS)
    for path, key in KEYS.items():
        assert key.meaning and key.values and key.default, path
        assert len(key.meaning) > 1 and not key.meaning.startswith("#"), path


def test_defaults_are_those_of_the_configuration() -> None:
    for path, value in flatten(to_tree(Config())):
        shown = ", ".join(map(str, value)) or "empty" if isinstance(value, list) else str(value)
        shown = {"True": "true", "False": "false", "None": "null"}.get(shown, shown)
        assert KEYS[path].default == shown, path


def test_a_key_a_section_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "data.latents"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("data.latents: text; default: auto\n") and "eqm-video cache" in said
    assert main(["explain", "held_out", "train.lr"]) == 0
    said = capsys.readouterr().out
    assert said.count("held_out.") >= 6 and "train.lr: a number above 0; default: 0.0001" in said
    assert main(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(KEYS)
    assert main(["explain", "--markdown"]) == 0
    assert capsys.readouterr().out.count("\n| `") == len(KEYS)


@pytest.mark.parametrize(
    ("name", "near"), [("latents", "data.latents"), ("train.stpes", "train.steps"), ("dta", "data")]
)
def test_an_unknown_key_names_the_nearest(name: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 2
    assert capsys.readouterr().err == f"error: {name} is no key of a recipe: did you mean {near}?\n"


@pytest.mark.parametrize("path", ["gamma.density.std", "objective.decay.b", "sampler.temperature"])
def test_keys_of_other_kinds_may_be_typed(path: str) -> None:
    kind = {"gamma.density.std": "logit_normal", "objective.decay.b": "piecewise", "sampler.temperature": "langevin"}[
        path
    ]
    home = path.rpartition(".")[0]
    changed = parse_config({}, [f"{home}.kind={kind}", f"{path}={KEYS[path].default}"])
    assert dict(flatten(to_tree(changed)))[path] == float(KEYS[path].default)


def test_a_value_that_opens_a_meaning_stays_as_it_is_typed() -> None:
    assert KEYS["data.resize"].meaning.startswith("adm: the resize") and "; torch" not in KEYS["data.resize"].meaning
    assert KEYS["train.compile"].meaning.startswith("torch.compile of") and KEYS["train.lr"].meaning[0].isupper()
    assert not [path for path, key in KEYS.items() if key.meaning.startswith(("Null:", "True:", "False:"))]

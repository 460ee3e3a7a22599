"""The configuration: unknown keys, ranges, and recipes as they resolve."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from eqm_video.core.decay import ConstantDecay, LinearDecay, TruncatedDecay
from eqm_video.core.gamma import ContextGamma, MixtureGamma, SharedGamma
from eqm_video.errors import UserError
from eqm_video.samplers import NAG, SAMPLERS, GradientDescent
from eqm_video.training.config import Config, ObjectiveConfig, load_config, parse_config, to_tree, to_yaml
from eqm_video.training.strict_yaml import BASED

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def test_defaults_are_the_projects() -> None:
    config = load_config()
    assert config == Config()
    assert config.objective.decay == TruncatedDecay(a=0.8, gain=4.0)
    assert config.gamma == SharedGamma()
    assert config.sampler.rule == NAG(step_size=0.003, mu=0.35)
    assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_read_back_as_they_are_written(path, tmp_path) -> None:
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert parse_config(to_tree(config)) == config
    head = path.read_text().split("\nmodel:")[0].replace("\n", " ")
    assert f"--config {path.stem} " in head, "the head of a recipe gives its command"


FULL = json.loads((ROOT / "tests" / "fixtures" / "recipes.json").read_text())


@pytest.mark.parametrize("name", FULL)
def test_a_recipe_with_a_base_has_the_values_of_the_full_one(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    config = load_config(path)
    assert json.loads(json.dumps(to_tree(config))) == FULL[name]
    assert config == parse_config(FULL[name]) and load_config(path, ["train.steps=7"]).train.steps == 7
    head = path.read_text().split(
        "\nmodel:" if name in ("ablations/base", "forcing/eqm", "gamma/shared") else "\nbase:"
    )[0]
    assert "Expected" in head and f"eqm-video train --config {name} " in f"{head} "


def test_every_recipe_of_the_folders_with_bases_is_compared() -> None:
    names = {f"{folder}/{path.stem}" for folder in BASED for path in (ROOT / "configs" / folder).glob("*.yaml")}
    assert set(FULL) == names
    files = [ROOT / "configs" / f"{name}.yaml" for name in names]
    assert sum(len(path.read_text().splitlines()) for path in files) < 450


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: none.yaml", r"base is 'none.yaml': it must be one of base.yaml, r.yaml, second.yaml, beside it$"),
        ("base: base", "base is 'base': it must be one of"),
        ("base: ../gamma/shared.yaml", "it must be one of"),
        ("base: null", "base is None: it must be one of"),
        ("base: [base.yaml]", "it must be one of"),
        ("base: {kind: base.yaml}", "it must be one of"),
        ("base: second.yaml", "its base second.yaml names a base itself"),
        ("base: r.yaml", "its base r.yaml names a base itself"),
        ("base: base.yaml\ntrain: {stpes: 3}", "unknown key 'train.stpes'; did you mean 'train.steps'"),
        ("base: base.yaml\ntrain.steps: 3", "unknown key 'train.steps': keys of a recipe have no dots"),
        ("base: base.yaml\nsampler: {kind: euler, mu: 0.3}", "sampler.mu"),
        ("base: base.yaml\ntrain: {steps: 0}", "train.steps is 0"),
    ],
)
def test_a_base_is_resolved_strictly(text: str, says: str, tmp_path) -> None:
    folder = tmp_path / "configs" / "ablations"
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text("train: {steps: 5, lr: 0.5}\nsampler: {kind: nag, mu: 0.2, steps: 9}\n")
    (folder / "second.yaml").write_text("base: base.yaml\nsampler: {kind: gd}\ntrain: {steps: 6}\n")
    second = load_config(folder / "second.yaml")
    assert (second.train.steps, second.train.lr, second.sampler.steps) == (6, 0.5, 9)
    assert isinstance(second.sampler.rule, GradientDescent)
    (folder / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_config(folder / "r.yaml")
    assert "\n" not in str(caught.value)


def test_other_recipes_have_no_base(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text("train: {steps: 5}")
    (tmp_path / "r.yaml").write_text("base: base.yaml")
    with pytest.raises(
        UserError, match="names a base, which only recipes in configs/ablations, configs/forcing and configs/gamma may"
    ):
        load_config(tmp_path / "r.yaml")
    with pytest.raises(UserError, match="unknown key 'base'"):
        load_config(None, ["base=base.yaml"])


def test_every_kind_of_value_from_yaml_and_from_overrides(tmp_path) -> None:
    (tmp_path / "r.yaml").write_text(
        "train: {lr: 2e-4, steps: 1e5, mixed_precision: no, clip_norm: null, betas: [0.9, 0.95]}\n"
        "data: {flip: true, root: 2024}\ntrack: {to: wandb}\n"
    )
    config = load_config(tmp_path / "r.yaml")
    assert config.train.lr == 2e-4 and config.train.steps == 100_000 and type(config.train.steps) is int
    assert config.train.mixed_precision == "no" and config.train.clip_norm is None and config.train.betas == (0.9, 0.95)
    assert config.data.flip is True and config.data.root == "2024" and config.track.to == ("wandb",)
    overrides = ["train.lr=5e-5", "train.steps=1e3", "data.flip=false", "train.mixed_precision=no", "data.root=017"]
    overrides += ["track.to=wandb,tensorboard", "held_out.gammas=[0.1, 0.9]", "train.clip_norm=2", "data.split=train"]
    config = load_config(tmp_path / "r.yaml", overrides)
    assert config.train.lr == 5e-5 and config.train.steps == 1000 and config.data.flip is False
    assert config.data.root == "017" and config.track.to == ("wandb", "tensorboard")
    assert config.held_out.gammas == (0.1, 0.9) and config.train.clip_norm == 2.0 and config.data.split == "train"
    assert load_config(tmp_path / "r.yaml", ["data.split=null", "track.to="]).track.to == ()


def test_null_on_the_command_line_is_null_in_a_recipe(tmp_path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {buckets: [16x3]}\ntrack: {to: wandb}\n")
    for null in ("null", "~", "[]", ""):
        config = load_config(recipe, [f"data.buckets={null}", f"track.to={null}"])
        assert config.data.buckets == () and config.track.to == ()
    recipe.write_text("gamma: {kind: context, patterns: null}")
    for arguments in ((recipe, []), (None, ["gamma.kind=context", "gamma.patterns=null"])):
        with pytest.raises(UserError, match=r"gamma: patterns are \(\); give one or more of prefix, ends, subset"):
            load_config(*arguments)


def test_bare_frames_sets_the_datas() -> None:
    assert load_config(None, ["frames=1"]).data.frames == 1


def test_a_choice_takes_the_fields_of_its_kind() -> None:
    config = load_config(None, ["objective.decay.kind=linear", "gamma=per_frame", "sampler.kind=gd"])
    assert config.objective.decay == LinearDecay(gain=4.0)
    assert config.sampler.rule == GradientDescent(step_size=0.003)
    assert "mu" not in to_tree(config)["sampler"] and to_tree(config)["sampler"]["steps"] == 250
    config = load_config(None, ["gamma={kind: mixture, shared: 0.5, context: 0.5, per_frame: 0}"])
    assert config.gamma == MixtureGamma(0.5, 0.5, 0.0)
    config = load_config(None, ["gamma.kind=context", "gamma.patterns=prefix,ends", "sampler.mu=0.2"])
    assert config.gamma == ContextGamma(("prefix", "ends")) and config.sampler.rule == NAG(0.003, 0.2)


def test_a_kind_that_is_a_word_keeps_the_recipes_keys_beside_it(tmp_path) -> None:
    (tmp_path / "r.yaml").write_text("data: {kind: videos, size: 32, latents: memory, root: here}\n")
    config = load_config(tmp_path / "r.yaml", ["data.kind=images", "data.frames=1", "gamma.kind=shared"])
    assert (config.data.kind, config.data.size, config.data.root) == ("images", 32, "here")


def test_a_new_kind_drops_the_recipes_keys_of_the_old_one(tmp_path) -> None:
    (tmp_path / "r.yaml").write_text(
        "objective: {decay: {kind: truncated, a: 0.7, gain: 2.0}}\nsampler: {kind: nag, mu: 0.1, steps: 9}\n"
        "gamma: shared\n"
    )
    overrides = ["sampler.step_size=0.01", "sampler.kind=gd", "objective.decay.kind=linear", "gamma.kind=context"]
    config = load_config(tmp_path / "r.yaml", overrides)
    assert config.objective.decay == LinearDecay(gain=2.0)
    assert config.sampler.rule == GradientDescent(0.01) and config.sampler.steps == 9
    assert config.gamma == ContextGamma()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.lrr=1", r"unknown key 'train.lrr'; did you mean 'train.lr'"),
        ("lr=1", r"unknown key 'lr'; did you mean 'train.lr'"),
        ("frame=1", r"did you mean 'data.frames'"),
        ("modle.preset=x", r"unknown key 'modle'; did you mean 'model'"),
        ("train.adam.beta=1", r"unknown key 'train.adam'"),
        ("train.lr.x=1", r"train.lr: expected a number, got \{"),
        ("objective.decay.b=1", r"unknown key 'objective.decay.b': kind 'truncated' .* a, gain"),
        ("objective.decay.kind=truncate", r"objective.decay.kind: 'truncate' .* did you mean 'truncated'"),
        ("objective.decay.a=1.5", r"objective.decay: .*below 1"),
        ("gamma=3", r"gamma must be a kind"),
        ("sampler.kind=nagg", r"sampler.kind: 'nagg' is not one of gd, nag, .*; did you mean 'nag'"),
        ("train.steps=2.5", r"train.steps: expected a whole number, got 2.5"),
        ("train.steps=many", r"train.steps: expected a whole number, got 'many'"),
        ("train.steps=true", r"train.steps: expected a whole number, got True"),
        ("train.lr=nan", r"train.lr: expected a number"),
        ("train.compile=2", r"train.compile: expected true or false"),
        ("train.betas=0.9", r"train.betas: expected 2 values"),
        ("train.schedule=step", r"train.schedule: 'step' is not one of constant, cosine, linear"),
        ("track.to=wandbb", r"track.to\[0\]: 'wandbb' .* did you mean 'wandb'"),
        ("train=3", r"train must be a mapping"),
        ("train.steps", r"write section.key=value"),
        ("data.root=[", None),
        ("train.lr=[", r"train.lr: cannot read"),
        ("train.lr=0", r"train.lr is 0.0: it must be a number above 0"),
        ("train.keep=0", r"train.keep is 0"),
        ("train.ema=1.5", r"train.ema is 1.5: it must be a number from 0 to 1"),
        ("data.workers=-1", r"data.workers is -1: it must be a whole number from 0 to 1024"),
        ("held_out.gammas=0.5,1", r"held_out.gammas is 1.0: it must be a number of at least 0 and below 1"),
        ("data.kind=images", r"add frames=1"),
        ("model.temporal=false", r"model.temporal=true, or frames=1"),
        ("train.accumulation=3", r"cannot be cut into"),
        ("objective=flwo", r"objective: 'flwo' is not one of eqm, flow, forcing, or .*; did you mean 'flow'"),
        ("objective=3", r"objective must be a mapping of keys, got 3"),
        ("train=flow", r"train must be a mapping of keys, got 'flow'"),
        ("model.energy=l1", r"model.energy: 'l1' is not one of implicit, dot, l2"),
        ("model.label_std=-0.1", r"model.label_std is -0.1: it must be a number of at least 0"),
        ("train.matrix_scale=0", r"train.matrix_scale is 0.0: it must be a number above 0"),
    ],
)
def test_wrong_overrides_are_sentences(override, sentence) -> None:
    if sentence is None:
        assert load_config(None, [override]).data.root == "["
        return
    with pytest.raises(UserError, match=sentence):
        load_config(None, [override])


def test_flow_and_eqm_are_words_for_whole_objectives(tmp_path) -> None:
    flow = load_config(None, ["objective=flow"])
    assert flow.objective == ObjectiveConfig(decay=ConstantDecay(1.0))
    recipe = tmp_path / "r.yaml"
    for text, overrides, decay, weight in (
        ("objective: flow", [], ConstantDecay(1.0), 0.0),
        ("objective: eqm", [], TruncatedDecay(0.8, 4.0), 0.0),
        ("objective: {decay: linear, dispersion_weight: 0.5}", ["objective=flow"], ConstantDecay(1.0), 0.0),
        ("objective: flow", ["objective=eqm"], TruncatedDecay(0.8, 4.0), 0.0),
        ("objective: flow", ["objective.dispersion_weight=0.5"], ConstantDecay(1.0), 0.5),
        # Whatever the order: first the section, then kinds, then keys.
        ("", ["objective.dispersion_weight=0.5", "objective=flow"], ConstantDecay(1.0), 0.5),
        ("", ["objective.decay.gain=2", "objective=flow"], ConstantDecay(2.0), 0.0),
        ("", ["objective.decay.kind=linear", "objective=flow"], LinearDecay(1.0), 0.0),
        ("", ["objective={decay: linear}", "objective.dispersion_weight=0.5"], LinearDecay(4.0), 0.5),
    ):
        recipe.write_text(text)
        config = load_config(recipe, overrides)
        assert config.objective == ObjectiveConfig(decay, weight), (text, overrides)
        recipe.write_text(to_yaml(config))
        assert load_config(recipe) == config == parse_config(to_tree(config))
    assert load_config(None, ["objective=flow"]).objective == flow.objective, "what a word means was changed"
    recipe.write_text("objective: flwo")
    for overrides in ([], ["objective.dispersion_weight=0.5"]):
        with pytest.raises(UserError, match=r"objective: 'flwo' is not one of eqm, flow"):
            load_config(recipe, overrides)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ([], r"add train\.gradient_checkpointing=true"),
        (["train.gradient_checkpointing=true", "model.energy=dot"], r"add train\.recompute=block"),
        (["train.gradient_checkpointing=true", "train.compile=true"], r"or train\.compile=false"),
    ],
)
def test_selective_checkpointing_is_refused_where_it_would_do_nothing(words, advice) -> None:
    with pytest.raises(UserError, match=f"train.recompute=selective .*{advice}"):
        load_config(None, ["train.recompute=selective", *words])
    assert load_config(None, ["train.recompute=selective", "train.gradient_checkpointing=true"])


def test_energies_are_read_back_and_do_not_go_with_compiled_blocks() -> None:
    assert load_config().model.energy == "implicit"
    config = load_config(None, ["model.energy=dot"])
    assert yaml.safe_load(to_yaml(config))["model"]["energy"] == "dot" and parse_config(to_tree(config)) == config
    assert load_config(None, ["train.compile=true"]).train.compile
    with pytest.raises(UserError, match=r"train.compile=true .*model.energy=l2: .* no double backward"):
        load_config(None, ["train.compile=true", "model.energy=l2"])


def test_every_sampler_can_be_recommended() -> None:
    for kind, cls in SAMPLERS.items():
        config = load_config(None, [f"sampler.kind={kind}", "sampler.steps=7"])
        assert type(config.sampler.rule) is cls and config.sampler.steps == 7
        assert parse_config(to_tree(config)) == config


@pytest.mark.parametrize("kind", ["context", "mixture"])
def test_two_frames_have_none_between_their_ends(kind) -> None:
    """Refused where no other pattern can be drawn in their place; the default has others."""
    gamma = [f"gamma.kind={kind}", "gamma.patterns=ends"]
    assert load_config(None, [*gamma, "frames=3"]).gamma.patterns == ("ends",)
    with pytest.raises(UserError, match=r"add gamma.patterns=prefix,ends, or frames=3"):
        load_config(None, [*gamma, "frames=2"])
    assert load_config(None, [gamma[0], "gamma.patterns=prefix,ends", "frames=2"]).data.frames == 2
    assert load_config(None, [gamma[0], "frames=2"]).data.frames == 2
    never = ["gamma={kind: mixture, shared: 0.5, context: 0, per_frame: 0.5, patterns: ends}", "frames=2"]
    assert load_config(None, never).gamma.context == 0


def test_wrong_files_are_sentences(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot read the recipe"):
        load_config(tmp_path / "none.yaml")
    for text, sentence in (("a: [", "not valid YAML"), ("- 1", "mapping of sections"), ("train: 3", "must be a map")):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(UserError, match=sentence):
            load_config(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("")
    assert load_config(tmp_path / "r.yaml") == Config()


def test_the_resolved_tree_is_plain_yaml() -> None:
    tree = yaml.safe_load(to_yaml(load_config(None, ["gamma=mixture", "track.to=wandb"])))
    assert tree["gamma"]["patterns"] == ["prefix", "ends", "subset"] and tree["track"]["to"] == ["wandb"]
    assert tree["train"]["lr"] == 1e-4 and tree["sampler"]["kind"] == "nag"


def test_another_kind_starts_from_its_own_numbers() -> None:
    assert parse_config({}, ["objective.decay=constant"]).objective.decay.gain == 1.0
    assert parse_config({}, ["sampler.kind=adam"]).sampler.rule == SAMPLERS["adam"]()

"""Evaluations while training: `evaluate`'s own numbers, the best checkpoint, and descents that fail."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import equal, main, read_metrics, recipe, tiny_trainer

from eqm_video.cli import main as command_line
from eqm_video.errors import UserError
from eqm_video.evaluation.model import sample_source
from eqm_video.evaluation.protocol import digest_of
from eqm_video.evaluation.run import Evaluation
from eqm_video.features.registry import open_feature
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.training.config import parse_config
from eqm_video.training.evaluating import PERMUTATIONS, REDRAWS, Best, Evaluating, loss_of
from eqm_video.training.run import Run, spread
from eqm_video.training.trainer import Hook

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def words(made: Path, run: Path, *more: str) -> list[str]:
    chosen = ["held_out.fraction=0.7", "preview.every=0", "train.lr=0.01", "train.ema=0", "train.keep=1"]
    evaluate = ["every=1", "n=4", "features=random", "metrics=mmd,motion", "best=mmd"]
    return [*recipe(made, run), *chosen, *(f"train.evaluate.{word}" for word in evaluate), *more]


@pytest.fixture(scope="module")
def straight(made, tmp_path_factory) -> Path:
    """A run of four steps, each of them evaluated; one checkpoint is kept, and the best."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert main(words(made, folder)) == 0
    return folder


def records(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "evaluations").iterdir())]


def test_every_evaluation_is_in_the_log_and_its_record_has_the_protocol(straight) -> None:
    lines, whole = read_metrics(straight), records(straight)
    assert [line["step"] for line in lines] == [record["step"] for record in whole] == [1, 2, 3, 4]
    for line, record in zip(lines, whole, strict=True):
        for name in ("mmd", "motion"):
            short, full = line["evaluate"][name], record["metrics"][name]
            assert short["value"] == full["value"] and [short["low"], short["high"]] == full["interval"]
        assert record["protocol_hash"] == whole[0]["protocol_hash"] == digest_of(record["protocol"])
        assert record["protocol"]["count"] == 4 and record["data"]["held out"]
    assert len({line["evaluate"]["mmd"]["value"] for line in lines}) == 4  # the weights changed


def test_numbers_are_those_that_evaluate_has_for_the_export(made, straight, fresh_accelerator) -> None:
    last = records(straight)[-1]
    pipeline = EqMPipeline.from_pretrained(straight / "export")
    pipeline.set_progress_bar_config(disable=True)
    config = parse_config({}, words(made, straight))
    run = Run(config, tiny_trainer(straight.parent / "other").accelerator, resuming=True)
    hook = next(hook.run for hook in run.trainer.evaluations if isinstance(hook.run, Evaluating))
    samples = sample_source(pipeline, Sampling(), 4)
    samples.labels = [run.video_labels[number] for number in spread(4, 2)]
    feature, cpu = open_feature("random", hook.evaluation.protocol.input()), torch.device("cpu")
    own = Evaluation(hook.evaluation.protocol, hook.evaluation.metrics, feature, cpu, 16, None, REDRAWS, PERMUTATIONS)
    again = own.run(samples, hook.real)
    assert again["protocol_hash"] == last["protocol_hash"]
    for name, result in again["metrics"].items():
        assert result["value"] == pytest.approx(last["metrics"][name]["value"], rel=1e-6, abs=1e-12)


def test_the_best_checkpoint_outlives_the_limit_and_is_exported(straight) -> None:
    values = [line["evaluate"]["mmd"]["value"] for line in read_metrics(straight)]
    best = 1 + values.index(min(values))
    assert read_metrics(straight)[-1]["best_step"] == best < 4, "the test needs a best step that is not the last"
    kept = sorted(path.name for path in (straight / "checkpoints").iterdir())
    assert kept == [f"step_{best:08d}", "step_00000004"]
    record = json.loads((straight / "checkpoints" / kept[-1] / "checkpoint.json").read_text())
    assert (record["best"]["step"], record["best"]["value"]) == (best, min(values))
    exported = load_file(straight / "export_best" / "transformer" / WEIGHTS)
    assert equal(exported, load_file(straight / "checkpoints" / kept[0] / "ema" / WEIGHTS))
    assert not equal(exported, load_file(straight / "export" / "transformer" / WEIGHTS))
    card = (straight / "export_best" / "README.md").read_text()
    assert f"after step {best}, the best of the evaluations by mmd" in card and f"{min(values):.4g}" in card


def test_a_run_is_sampled_from_its_last_export_and_names_the_best(straight, tmp_path) -> None:
    options = ["--num-samples", "1", "--steps", "1", "--device", "cpu"]
    notes = {}
    for name in (".", "export", "export_best"):
        printed = io.StringIO()
        with redirect_stdout(printed):
            assert command_line(["sample", str(straight / name), "--out", str(tmp_path / name / "out"), *options]) == 0
        notes[name] = [line for line in printed.getvalue().splitlines() if "best evaluation" in line]
    last, best = straight / "export", straight / "export_best"
    line = f"{last} has the weights of the last step; type {best} for those of the best evaluation"
    assert notes == {".": [line], "export": [], "export_best": []}
    models = [json.loads((tmp_path / name / "out" / "samples.json").read_text())["model"] for name in notes]
    assert models == [str(straight / name) for name in ("export", "export", "export_best")]


def test_a_resumed_run_has_the_same_numbers_and_the_same_best(made, straight, tmp_path) -> None:
    folder = tmp_path / "run"
    assert main(words(made, folder, "train.steps=2")) == 0
    assert main([*words(made, folder), "--resume"]) == 0
    ours, theirs = read_metrics(folder), read_metrics(straight)
    for key in ("evaluate", "best_step", "loss"):
        assert [line[key] for line in ours] == [line[key] for line in theirs]
    for export in ("export", "export_best"):
        names = [run / export / "transformer" / WEIGHTS for run in (folder, straight)]
        assert names[0].read_bytes() == names[1].read_bytes()


def test_a_best_of_another_protocol_does_not_count(made, tmp_path) -> None:
    folder = tmp_path / "run"
    assert main(words(made, folder, "train.steps=2")) == 0
    assert main([*words(made, folder, "train.steps=3", "train.evaluate.n=3"), "--resume"]) == 0
    assert read_metrics(folder)[-1]["best_step"] == 3


def test_samples_that_diverge_cost_the_evaluation_and_nothing_else(made, tmp_path, capsys) -> None:
    assert main(words(made, tmp_path / "run", "sampler.step_size=1e38", "sampler.steps=50", "train.steps=1")) == 0
    said = capsys.readouterr().out
    assert "no evaluation of step 1: " in said
    line = read_metrics(tmp_path / "run")[-1]
    assert "evaluate" not in line and "best_step" not in line and not (tmp_path / "run" / "export_best").exists()


def test_a_best_that_cannot_be_written_is_not_named(tmp_path) -> None:
    best, values = Best("mmd", "here"), {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}

    def evaluation(step: int, network: torch.nn.Module) -> dict:
        best.offer(step, values[step], values[step])
        folder = tmp_path / "checkpoints"
        if step == 2:  # a file in place of the folder, and away again a step later
            folder.rename(tmp_path / "away")
            folder.write_text("")
        elif step == 3:
            folder.unlink()
            (tmp_path / "away").rename(folder)
        return {}

    trainer = tiny_trainer(tmp_path, save_every=100, keep=1, best=best, evaluations=[Hook(1, evaluation)])
    with pytest.warns(UserWarning, match="cannot write the checkpoint of step 2"):
        assert trainer.run()
    assert (best.step, best.value) == (3, 2.0)
    assert [path.name for path in trainer.checkpoints.all()] == ["step_00000003", "step_00000004"]


def test_the_best_is_the_lowest_the_highest_or_the_nearest_to_real_clips() -> None:
    assert loss_of({"better": "lower", "value": 2.0}) == 2.0
    assert loss_of({"better": "higher", "value": 2.0}) == -2.0
    assert loss_of({"better": "real", "value": 2.0, "real": {"value": 5.0}}) == 3.0
    best = Best("mmd", "here")
    assert not best.offer(1, math.nan, math.nan) and best.offer(2, 5.0, 5.0) and not best.offer(3, 5.0, 5.0)
    assert not Best("mmd", "elsewhere").load(best.state()) and not Best("kid", "here").load(best.state())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["held_out.fraction=null"], "needs clips that are not trained on: add held_out.fraction=0.1"),
        (["train.evaluate.every=0"], "train.evaluate.best=mmd needs evaluations"),
        (["train.evaluate.metrics=mdm"], "train.evaluate.metrics=mdm: there is no such metric (did you mean mmd?)"),
        (["train.evaluate.metrics=fvd"], "fvd is a number of the feature i3d, and the feature is random"),
        (["train.evaluate.metrics=psnr"], "psnr compares a clip with its true one"),
        (["train.evaluate.metrics=null"], "train.evaluate.metrics is empty"),
        (["train.evaluate.best=kid"], "it must be one of train.evaluate.metrics, which are mmd, motion"),
        (["train.evaluate.features=vgg"], "train.evaluate.features is 'vgg': it must be transnet, random, pixels"),
        (["train.evaluate.n=1"], "train.evaluate.n is 1: it must be a whole number from 2"),
    ],
)
def test_wrong_settings_are_sentences(made, tmp_path, more, said) -> None:
    with pytest.raises(UserError) as error:
        parse_config({}, words(made, tmp_path, *more))
    assert said in str(error.value)


def test_what_the_clips_or_the_network_lack_is_said_before_the_first_step(made, tmp_path, capsys) -> None:
    for more, said in (
        ("train.evaluate.metrics=mmd,is", "train.evaluate: --metrics is: the feature random has no logits"),
        ("train.evaluate.features=i3d", "needs its file"),
    ):
        assert main(words(made, tmp_path / "run", more)) == 2
        assert said in capsys.readouterr().err

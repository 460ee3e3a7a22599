"""`Sampling`: one list of how samples are made, and everything that is made from it."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
import warm
from tiny_models import tiny_pipeline

from eqm_video.errors import UserError
from eqm_video.options import declared
from eqm_video.samplers import NAG, GradientDescent
from eqm_video.sampling.options import parse
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import roll_out
from eqm_video.sampling.settings import Sampling

ROOT = Path(__file__).resolve().parent.parent
FIELDS = {entry.name: entry.default for entry in dataclasses.fields(Sampling)}
KEYWORDS = {  # of a call, with their defaults: they do not change
    **{"labels": None, "num_samples": None, "num_frames": None, "steps": None, "sampler": None, "step_size": None},
    **{"mu": None, "temperature": None, "step_schedule": "constant", "guidance_scale": None},
    **{"guidance_interval": None, "match_norm": False, "composition": None, "plain_sum": False, "seeds": None},
    **{"generator": None, "fps": None, "size": None, "clips": None, "start_gamma": 0.0, "known": None},
    **{"context_gamma": 1.0, "history_guidance": 1.0, "frame_schedule": "joint", "tolerance": None},
    **{
        "per_frame": False,
        "warp": None,
        "closed_loop": None,
        "loop": False,
        "known_mask": None,
        "output_type": "pil",
        "callback": None,
        "decode_chunk_size": 64,
    },
}


def test_the_keywords_of_a_call_are_what_they_were() -> None:
    found = dict(inspect.signature(EqMPipeline.__call__).parameters)
    found.pop("self")
    assert {name: one.default for name, one in found.items()} == KEYWORDS
    assert all(one.kind is one.KEYWORD_ONLY for name, one in found.items() if name != "labels")
    assert len(FIELDS) == 20 and FIELDS.items() <= KEYWORDS.items()


def test_every_field_is_an_option_of_the_command_line() -> None:
    options = parse(["MODEL", "--out", "DIR"])
    assert FIELDS.keys() <= declared(type(options)).keys()
    for name, default in FIELDS.items():
        assert getattr(options, name) == default or (name, getattr(options, name)) == ("start_gamma", None)
    words = "MODEL --out D --steps 9 --compose Disc:2 Left --guidance-interval 0 0.5 --frame-schedule 3 --per-frame"
    how = Sampling.of(parse(words.split()), start_gamma=0.0)
    assert (how.steps, how.composition, how.guidance_interval) == (9, (("Disc", 2.0), ("Left", 1.0)), (0.0, 0.5))
    assert how.frame_schedule == 3 and how.per_frame and not how.match_norm


def test_bounds_are_the_same_in_python_and_on_the_command_line() -> None:
    for name, bad in (("steps", -1), ("mu", 1.0), ("tolerance", 0), ("context_gamma", 0), ("start_gamma", 1)):
        with pytest.raises(UserError, match=f"^{name} is {bad}: it must be "):
            Sampling(**{name: bad})
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(UserError, match=f"^{flag} is {bad}: it must be "):
            parse(["MODEL", "--out", "D", f"{flag}={bad}"])


def test_what_is_left_out_comes_from_the_model_and_once_only() -> None:
    pipe = tiny_pipeline(sampler={"kind": "gd", "step_size": 0.05, "steps": 4, "guidance_scale": 2.0})
    how = Sampling(step_size=0.1, tolerance=0.5).on(pipe)
    assert how == Sampling(steps=4, sampler=GradientDescent(0.1), guidance_scale=2.0, tolerance=0.5) == how.on(pipe)
    assert how.record() == {
        "steps": 4,
        "sampler": {"kind": "gd", "step_size": 0.1},
        "guidance_scale": 2.0,
        "tolerance": 0.5,
    }
    with pytest.raises(UserError, match="brings its own numbers"):
        Sampling(sampler=NAG(0.1), mu=0.2).on(pipe)
    both = Sampling(composition=(("up", 2.0), ("left", -1.0)))
    assert both.steepness == 3.0 and both.on(pipe).call().guidance_scale is None


def test_a_call_and_a_roll_out_take_it_whole() -> None:
    pipe = tiny_pipeline()
    how = Sampling(steps=3, sampler="gd", step_size=0.1, guidance_scale=1.5)
    plain = {"seeds": [5], "output_type": "latent"}
    whole = pipe.sample(how, ["up"], **plain).frames
    assert torch.equal(whole, pipe(["up"], steps=3, sampler="gd", step_size=0.1, guidance_scale=1.5, **plain).frames)
    one, other = (
        [window.latents for window in roll_out(pipe, ["up"], length=5, overlap=1, seeds=[5], **given)]
        for given in ({"how": how}, {"steps": 3, "sampler": "gd", "step_size": 0.1, "guidance_scale": 1.5})
    )
    assert len(one) == 2 and all(map(torch.equal, one, other)) and torch.equal(one[0], whole)
    with pytest.raises(UserError, match="give how, or its fields, not both: steps"):
        list(roll_out(pipe, ["up"], length=5, overlap=1, seeds=[5], how=how, steps=3))


def test_a_new_field_is_a_keyword_an_option_and_part_of_the_record_at_once(tmp_path) -> None:
    """Adding a line to `Sampling` is enough: done to a copy of the file that shadows the package's own.

    The new field reaches the pipeline, the command line, samples.json, every window of a roll-out, studies, the page
    and the preview of a training run.
    """
    source = (ROOT / "eqm_video" / "sampling" / "settings.py").read_text(encoding="utf-8")
    line = "    history_guidance: float = option("
    assert source.count(line) == 1
    new = source.replace(line, '    boldness: float = option(0.5, least=0, most=1, help="how bold")\n' + line)
    (tmp_path / "settings.py").write_text(new, encoding="utf-8")
    code = f"""
import importlib.util, inspect, json, sys
from pathlib import Path
for name in [name for name in sys.modules if name.partition(".")[0] in ("eqm_video", "tiny_run", "tiny_models")]:
    del sys.modules[name]  # the process begins as the fork of one that has imported the package
import eqm_video.sampling
spec = importlib.util.spec_from_file_location("eqm_video.sampling.settings", {str(tmp_path / "settings.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules["eqm_video.sampling.settings"] = module
spec.loader.exec_module(module)
from eqm_video import cli
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.options import parse
from eqm_video.sampling.rollout import roll_out
sys.path.insert(0, {str(ROOT / "tests")!r})
from tiny_models import tiny_pipeline
from tiny_run import main, recipe, write_codec, write_videos
assert inspect.signature(EqMPipeline.__call__).parameters["boldness"].default == 0.5
options = parse(["M", "--out", "D", "--boldness", "0.25", "sampler.steps=2"])
how = module.Sampling.of(options, start_gamma=0.0).on(tiny_pipeline())
assert how.record()["boldness"] == 0.25, how.record()
try:
    tiny_pipeline()(["up"], boldness=2)
except ValueError as error:
    assert str(error) == "boldness is 2: it must be a number from 0 to 1", error
else:
    raise AssertionError

seen, sample = [], EqMPipeline.sample
def watched(self, how, *others, **more):
    seen.append(how.boldness)
    return sample(self, how, *others, **more)
EqMPipeline.sample = watched
folder = Path({str(tmp_path)!r})
pipe = tiny_pipeline()
windows = list(roll_out(pipe, ["up"], length=5, overlap=1, seeds=[5], steps=1, boldness=0.75))
assert len(windows) == 2 and seen == [0.75, 0.75], seen

from eqm_video.page.controls import controls
assert "boldness" in [control.name for control in controls(pipe)]
pipe.save_pretrained(folder / "export")
write_videos(folder / "videos", size=16)
words = ["--steps", "1", "--boldness", "0.25", "--out"]
assert cli.main(["sample", str(folder / "export"), "--num-samples", "1", *words, str(folder / "samples")]) == 0
assert json.loads((folder / "samples" / "samples.json").read_text())["settings"]["boldness"] == 0.25
study = ["predict", str(folder / "export"), "--data", str(folder / "videos"), "--clips", "1", "--known", "first"]
assert cli.main([*study, *words, str(folder / "predict")]) == 0
assert json.loads((folder / "predict" / "predict.json").read_text())["options"]["boldness"] == 0.25
judged = ["evaluate", str(folder / "export"), "--metrics", "flicker", "--num-samples", "1"]
assert cli.main([*judged, *words, str(folder / "evaluate")]) == 0
assert '"boldness": 0.25' in (folder / "evaluate" / "evaluate.json").read_text()
assert seen[2:] == [0.25, 0.25, 0.25], seen

write_codec(folder / "codec")
steps = ["train.steps=1", "preview.every=1", "preview.samples=1"]
assert main([*recipe(folder, folder / "run"), *steps]) == 0
assert len(seen) == 6 and seen[5] == 0.5, seen
"""
    done = warm.run("-c", code, timeout=240)
    assert done.returncode == 0, done.stderr

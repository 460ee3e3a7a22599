"""Arguments of a call and settings of a model: what is not allowed gets one sentence, never another number instead."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import NAMES, latents, save_checkpoint, tiny_pipeline, tiny_transformer

from eqm_video.core.decay import TruncatedDecay
from eqm_video.errors import UserError
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.pipeline import EqMPipeline

DECAY = TruncatedDecay()


@pytest.fixture(scope="module")
def pipe() -> EqMPipeline:
    return tiny_pipeline()


# Labels, seeds and numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"seeds": [1.5]}, r"the seed 1\.5 is no whole number"),
        ({"seeds": [True]}, "the seed True is no whole number"),
        ({"seeds": ["7"]}, "the seed '7' is no whole number"),
        ({"seeds": [None]}, "the seed None is no whole number"),
        ({"seeds": 7}, "seeds are 7; give a list"),
        ({"generator": 7}, "generators are 7; give a list"),
        ({"labels": [True]}, "label True is no label"),
        ({"labels": False}, "label False is no label"),
        ({"labels": [1.0]}, r"label 1\.0 is no label"),
        ({"labels": torch.tensor([1.5])}, r"is no label: give names"),
        ({"labels": [["up"]]}, "is no label"),
        ({"labels": {"up": 1}}, "labels are"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan"),
        ({"guidance_scale": "2"}, "guidance_scale is '2'"),
        ({"guidance_scale": True}, "guidance_scale is True"),
        ({"fps": math.inf}, "fps is inf"),
        ({"fps": True}, "fps is True"),
        ({"fps": 1e-300}, "too large for float32"),
        ({"steps": 10**12}, "steps is 1000000000000"),
        ({"steps": 2.5}, r"steps is 2\.5"),
        ({"steps": True}, "steps is True"),
        ({"num_samples": 10**12}, "num_samples is"),
        ({"num_frames": 10**12}, "frames is"),
        ({"num_frames": True}, "frames is True"),
        ({"size": 3_200_000}, "the most is 16,384 pixels"),
        ({"size": 16.0}, r"size is 16\.0"),
        ({"size": (16,)}, r"size is \(16,\)"),
        ({"size": True}, "size is True"),
        ({"composition": ["up"]}, "a term of the composition is 'up'"),
        ({"composition": 5}, "composition is 5"),
        ({"composition": [("up", math.nan)]}, "a weight of the composition is nan"),
        ({"decode_chunk_size": 0}, "decode_chunk_size is 0"),
        ({"clips": [[1], [1, 2]]}, "clips are no array"),
    ],
)
def test_what_is_no_label_seed_or_number_is_refused_in_a_sentence(pipe, keywords, sentence):
    with pytest.raises(UserError, match=sentence):
        pipe(**{"steps": 1, **keywords})


def test_numbers_of_numpy_and_torch_are_numbers(pipe):
    plain = latents(pipe, ["left"], seeds=[3], steps=2, guidance_scale=2.0, size=16)
    for label in (2, np.int64(2), torch.tensor(2), np.array([2])[0]):
        found = latents(
            pipe, [label], seeds=np.array([3]), steps=np.int32(2), guidance_scale=np.float32(2.0), size=np.int64(16)
        )
        assert torch.equal(found, plain)
    assert torch.equal(latents(pipe, np.int64(2), seeds=torch.tensor([3]), steps=2, guidance_scale=2), plain)
    assert len(latents(pipe, np.array([0, 1]), steps=1)) == len(latents(pipe, seeds=np.array([4, 5]), steps=1)) == 2
    assert latents(pipe, seeds=[-3, 2**70], steps=1).isfinite().all()  # any whole number is a seed


@pytest.mark.parametrize(("wrong", "right"), [("class_labels", "labels"), ("prompt", "labels"), ("frame_rate", "fps")])
def test_names_of_other_pipelines_are_answered_with_the_right_one(pipe, wrong, right):
    with pytest.raises(TypeError, match=f"{wrong} is no argument .*called {right}"):
        pipe(**{wrong: 3})


def test_the_words_of_diffusers_mean_the_same(pipe):
    """num_inference_steps, image, video and callback_on_step_end, beside the names that they have here."""
    with pytest.warns(UserWarning, match="num_inference_steps is called steps here"):
        assert torch.equal(latents(pipe, seeds=[1], num_inference_steps=2), latents(pipe, seeds=[1], steps=2))
    picture = Image.new("RGB", (16, 16), (200, 30, 60))
    same = {"seeds": [1], "steps": 2}
    assert torch.equal(latents(pipe, image=picture, **same), latents(pipe, clips=picture, **same))
    frames = [Image.new("RGB", (16, 16), (60 * k, 30, 60)) for k in range(3)]
    theirs = latents(pipe, video=frames, known=[0, 1], num_frames=3, **same)
    assert torch.equal(theirs, latents(pipe, clips=[frames], known=[0, 1], num_frames=3, **same))
    seen = []

    def on_step_end(pipeline, step, timestep, tensors):
        assert pipeline is pipe and timestep == step
        seen.append((step, sorted(tensors), tensors["latents"].clone()))
        return tensors

    made = latents(pipe, callback_on_step_end=on_step_end, **same)
    assert [entry[:2] for entry in seen] == [(0, ["latents"]), (1, ["latents"])] and torch.equal(seen[-1][2], made)
    both = ["gradient", "latents"]
    latents(pipe, callback_on_step_end=on_step_end, callback_on_step_end_tensor_inputs=both, **same)
    assert seen[-1][1] == both


def test_arrays_and_tensors_are_pictures_as_diffusers_has_them(pipe):
    """`image` and `video`: uint8 or [0, 1], channels last in arrays and first in tensors, for one sample or several."""
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    tensor, same = torch.from_numpy(video).movedim(-1, -3), {"steps": 1, "seeds": [1, 2], "num_samples": 2}
    for name, known, right, left in (
        ("image", None, video[:, 0], tensor[:, 0]),
        ("video", [0, 1], video, tensor),
    ):
        given = same if known is None else {**same, "known": known}
        nested = [[Image.fromarray(frame) for frame in clip] for clip in video]
        expected = latents(pipe, clips=nested if name == "video" else [clip[0] for clip in nested], **given)
        for value in (right, right / 255, list(right), left, left / 255, list(left)):
            assert torch.equal(latents(pipe, **{name: value}, **given), expected), (name, type(value))
    for value in (video[0], tensor[0], list(video[0])):  # the frames of a single video
        single = latents(pipe, video=value, known=[0], steps=1, seeds=[1])
        assert torch.equal(single, latents(pipe, clips=video[:1], known=[0], steps=1, seeds=[1]))


def test_a_call_can_be_ended_by_a_callback_and_give_a_tuple(pipe):
    """`pipe._interrupt` and return_dict=False, as diffusers has them."""
    full, steps = {}, []
    same = {"seeds": [1], "steps": 4, "output_type": "latent"}
    pipe(callback=lambda step, values, _: full.update({step: values.clone()}), **same)

    def on_step_end(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = step == 1
        return tensors

    frames, nfe, _ = pipe(callback_on_step_end=on_step_end, return_dict=False, **same)
    assert steps == [0, 1] and nfe.tolist() == [2] and torch.equal(frames, full[1]) and pipe.interrupt
    assert torch.equal(pipe(**same).frames, full[3]) and not pipe.interrupt  # the next call starts afresh


@pytest.mark.parametrize(
    ("wrong", "kind", "sentence"),
    [
        ({"video": []}, UserError, "video is a list of 0: give the frames of a video as a list"),
        ({"video": Image.new("RGB", (16, 16))}, UserError, "video is Image: give the frames of a video as a list"),
        ({"image": "photo.jpg"}, UserError, "open a file with PIL.Image.open"),
        ({"image": torch.full((3, 16, 16), -1.0)}, UserError, r"image has numbers from -1 to -1: .* in \[0, 1\]"),
        ({"image": np.zeros((3, 16, 16))}, UserError, r"image is ndarray \(3, 16, 16\): an array must be \(H, W, 3\)"),
        ({"strength": 0.5}, TypeError, "called start_gamma"),
        ({"guidance": 2.0}, TypeError, "guidance is no argument of this pipeline: did you mean guidance_scale"),
        ({"num_inference_steps": 2, "steps": 2}, TypeError, "is called steps here, and both are given"),
        ({"image": 1, "video": 1}, TypeError, "video is called clips here, and both are given"),
        ({"callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}}, UserError, "returned other latents"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            UserError,
            "give some of latents, gradient",
        ),
    ],
)
def test_words_of_diffusers_that_cannot_be_meant(pipe, wrong, kind, sentence):
    with pytest.raises(kind, match=sentence):
        pipe(seeds=[0], **{"steps": 1, **wrong} if "num_inference_steps" not in wrong else wrong)


def test_a_label_without_a_name_is_refused():
    """The embedding has 5 rows, but names, and training data, were there for 3."""
    model = tiny_pipeline(tiny_transformer(num_labels=5))
    assert model.label_ids(["down", 2, "1", None]) == [1, 2, 1, 5]
    for label in (3, 4, "4"):
        with pytest.raises(UserError, match=f"label {label} has no name: this model was trained on 3 of its 5 labels"):
            model.label_ids([label])
    nameless = tiny_pipeline(tiny_transformer(num_labels=5), id2label=None)
    assert nameless.label_ids([4, "4"]) == [4, 4]


def test_a_name_that_is_a_number_is_a_name():
    model = tiny_pipeline(tiny_transformer(num_labels=4), id2label=["0", "1", "10", "2"])
    assert model.label_ids(["2", "10", "0"]) == [3, 2, 0]
    assert model.label_ids([2]) == [2]  # a number is a number
    with pytest.raises(UserError, match="unknown label '3'"):
        model.label_ids(["3"])


def test_names_are_the_same_however_their_accents_are_stored():
    composed, apart = "Caf\u00e9", "Cafe\u0301"
    for stored in (composed, apart):
        assert tiny_pipeline(id2label=["Tea", stored, "Milk"]).label_ids([composed, apart]) == [1, 1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fps": math.nan}, "fps is nan"),
        ({"fps": 0}, "fps is 0; it must be above 0"),
        ({"reference_fps": -1}, "reference_fps is -1"),
        ({"frames": 0}, "frames is 0"),
        ({"frames": 2.5}, r"frames is 2\.5"),
        ({"size": "big"}, "size is 'big'"),
        ({"size": [16, 16, 16]}, "size is"),
        ({"id2label": {"one": "up"}}, "id2label names the label 'one'"),
        ({"decay": {"kind": "truncated", "b": 1}}, "decay is .* must be a kind of decay"),
        ({"decay": {"kind": "none"}}, "decay is .* must be a kind of decay"),
        ({"sampler": {"kind": ["nag"]}}, "sampler .* is not one of"),
        ({"sampler": {"steps": 10**10}}, "the sampler's steps is"),
        ({"sampler": {"guidance_scale": math.inf}}, "the sampler's guidance_scale is inf"),
        ({"sampler": 5}, "sampler is 5"),
        ({"curvature": {"largest": math.nan, "guidance_scale": 1.0}}, "a number of curvature is nan"),
        ({"curvature": [1.0]}, "curvature is"),
    ],
)
def test_wrong_settings_are_refused_with_the_file_that_holds_them(pipe, settings, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        tiny_pipeline(**settings)
    save_checkpoint(tmp_path, pipe, "pixels")
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    (key,) = settings
    with pytest.raises(UserError, match=f"{file.name}(: {key} is .*; it must be | .*is not a JSON number)"):
        EqMPipeline.from_checkpoint(tmp_path, codec=pipe.codec)


# Compositions' steps --------------------------------------------------------------------------------------------------

MEASURED = {"largest": 10.0, "guidance_scale": 1.0, "by_guidance": [[1.0, 10.0], [2.0, 12.0], [4.0, 18.0]]}


def test_a_plain_sum_has_the_curvature_of_all_its_fields():
    """n fields that agree have n times the curvature of one, whatever guidance has; `auto` stays below the limit."""
    model = tiny_pipeline(curvature=MEASURED, decay={"kind": "truncated", "a": 0.8, "gain": 1e-4})
    for count in (2, 4, 6):
        terms = [("up", 1.0)] * count
        limit = 2 / (10 * count)
        with pytest.warns(UserWarning, match=f"is beyond {limit:.4g}, the limit"):
            model(composition=terms, plain_sum=True, sampler="gd", step_size=1.01 * limit, steps=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(composition=terms, plain_sum=True, sampler="gd", step_size=0.99 * limit, steps=1)
            model(composition=terms, plain_sum=True, sampler="gd", step_size="auto", steps=1)
        auto = model.rule("gd", "auto", steps=1, guidance_scale=float(count), plain=[1.0] * count)
        assert auto.step_size == pytest.approx(limit / 2)
        assert model.step_warning(auto, float(count), plain=[1.0] * count) is None
    guided = model.rule("gd", "auto", steps=1, guidance_scale=4.0)
    assert guided.step_size == pytest.approx(1 / 18)


def test_a_plain_sum_walks_as_many_times_faster():
    model = tiny_pipeline(curvature={"largest": 1e-6, "guidance_scale": 1.0})
    one = model.rule("gd", "auto", steps=100)
    three = model.rule("gd", "auto", steps=100, plain=[1.0, 1.5, 0.5])
    assert three.step_size == pytest.approx(one.step_size / 3)
    with pytest.raises(UserError, match="measured for this model alone"):
        model(composition=[("up", 1.0), ("up", 1.0, tiny_pipeline())], plain_sum=True, step_size="auto")
    with pytest.raises(UserError, match=r"add up to 0, .* give the step size"):
        model(composition=[("up", 1.0), ("down", -1.0)], plain_sum=True, step_size="auto")


def test_a_conditioned_network_gets_the_gamma_that_a_plain_sum_reaches():
    model = tiny_pipeline(tiny_transformer(conditioned_on_gamma=True))
    options = {"seeds": [1], "steps": 3, "sampler": "gd"}
    with torch.no_grad():
        for weights in model.transformer.parameters():
            weights.mul_(0.5)
    single = latents(model, "up", step_size=0.1, **options)
    half = latents(model, composition=[("up", 1.0), ("up", 1.0)], plain_sum=True, step_size=0.05, **options)
    torch.testing.assert_close(half, single, rtol=1e-4, atol=1e-5)


# Weights --------------------------------------------------------------------------------------------------------------


def first(pipe: EqMPipeline) -> float:
    return float(next(pipe.transformer.parameters()).detach().flatten()[0])


def test_variants_are_loaded_by_name(tmp_path):
    model = tiny_pipeline()
    model.save_pretrained(tmp_path / "both")
    plain = first(model)
    with torch.no_grad():
        for weight in (*model.transformer.parameters(), *model.vae.parameters()):
            weight.add_(1.0)
    model.save_pretrained(tmp_path / "both", variant="fp16")
    model.save_pretrained(tmp_path / "one", variant="fp16")
    assert first(EqMPipeline.from_pretrained(tmp_path / "both")) == pytest.approx(plain)
    for folder in ("both", "one"):
        found = EqMPipeline.from_pretrained(tmp_path / folder, variant="fp16")
        assert first(found) == pytest.approx(plain + 1)
        torch.testing.assert_close(found.vae.decoder.conv_in.weight, model.vae.decoder.conv_in.weight)
    with pytest.raises(
        UserError, match="has no weights of the variant 'bf16': leave variant out or give variant='fp16'"
    ):
        EqMPipeline.from_pretrained(tmp_path / "both", variant="bf16")
    with pytest.raises(UserError, match=r"has no weights without a variant: give variant='fp16'"):
        EqMPipeline.from_pretrained(tmp_path / "one")


def test_dtypes_are_taken_in_the_forms_of_diffusers(tmp_path):
    model = tiny_pipeline()
    model.transformer.half()
    model.save_pretrained(tmp_path)

    def loaded(**keywords) -> tuple[torch.dtype, torch.dtype]:
        found = EqMPipeline.from_pretrained(tmp_path, **keywords)
        return found.transformer.dtype, found.vae.dtype

    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    assert loaded() == (single, single)
    assert loaded(torch_dtype="auto") == loaded(dtype="auto") == (half, single)
    assert loaded(dtype=brain) == loaded(torch_dtype="bfloat16") == (brain, brain)
    assert loaded(torch_dtype={"transformer": brain, "default": half}) == (brain, half)
    assert loaded(torch_dtype={"vae": "auto", "transformer": "auto"}) == (half, single)
    assert load_pipeline(tmp_path, torch_dtype={"vae": half})[0].vae.dtype == half
    for wrong in (torch.int8, "fast", 16, {"vae": "fast"}):
        with pytest.raises(UserError, match=r"torch_dtype is .*must be one of float32"):
            loaded(torch_dtype=wrong)
    with pytest.raises(UserError, match="the parts are transformer, vae, or default"):
        loaded(torch_dtype={"unet": half})
    with pytest.raises(UserError, match="they mean the same"):
        loaded(torch_dtype=half, dtype=brain)


def test_a_pipeline_of_anothers_components_samples_the_same():
    model = tiny_pipeline(fps=12.0, curvature=MEASURED)
    expected = latents(model, "left", seeds=[5], guidance_scale=2.0)
    again = [EqMPipeline(**model.components), EqMPipeline(**model.components, **model.parameters)]
    for one in (*again, EqMPipeline.from_pipe(model)):
        one.set_progress_bar_config(disable=True)
        assert one.labels == dict(enumerate(NAMES)) and one.config.size == 16
        assert one.config.sampler == model.config.sampler and one.config.curvature == MEASURED
        assert torch.equal(latents(one, "left", seeds=[5], guidance_scale=2.0), expected)
    assert model.to("cpu").components["transformer"] is model.transformer
    changed = EqMPipeline(**{**model.components, "fps": 6.0})
    assert changed.config.fps == 6.0 and changed.labels == model.labels


# Pictures -------------------------------------------------------------------------------------------------------------


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_picture_is_the_first_frame_of_every_clip(pipe):
    given = picture()
    clips = np.repeat(np.asarray(given)[None, None], 3, axis=1)
    options = {"steps": 2, "output_type": "latent"}
    expected = pipe(["up", "left"], seeds=[1, 2], clips=np.repeat(clips, 2, axis=0), known=[0], **options).frames
    assert torch.equal(pipe(["up", "left"], seeds=[1, 2], clips=given, **options).frames, expected)
    assert torch.equal(pipe(["up", "left"], seeds=[1, 2], clips=[given, given], **options).frames, expected)
    two = pipe(["up", "left"], seeds=[1, 2], clips=[given, picture(seed=1)], **options).frames
    assert torch.equal(two[0], expected[0]) and not torch.equal(two[1, 0], expected[1, 0])
    last = pipe("up", seeds=[1], clips=given, known=[-1], **options).frames
    assert torch.equal(last[0, 2], expected[0, 0])


def test_lists_of_frames_are_clips_and_what_comes_out_goes_in(pipe):
    out = pipe("up", seeds=[1], steps=2).frames
    as_array = np.stack([np.stack([np.asarray(frame) for frame in clip]) for clip in out])
    expected = latents(pipe, "up", seeds=[2], steps=2, clips=as_array, start_gamma=0.5)
    assert torch.equal(latents(pipe, "up", seeds=[2], steps=2, clips=out, start_gamma=0.5), expected)
    for wrong in ([picture(), np.zeros((16, 16, 3))], [[picture()] * 3, [picture()] * 2]):
        with pytest.raises(UserError, match="clips mix pictures with something else"):
            pipe(["up", "up"], clips=wrong, known=[0])


def test_pictures_are_made_upright_rgb_and_of_the_models_size(pipe):
    upright = picture(20, 10)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # turn by 90 degrees clockwise to see it
    expected = latents(pipe, clips=upright, seeds=[1], steps=1)
    assert torch.equal(latents(pipe, clips=turned, seeds=[1], steps=1), expected)
    grey = Image.fromarray(np.full((16, 16), 20000, dtype=np.uint16))
    assert torch.equal(
        latents(pipe, clips=grey, seeds=[1], steps=1),
        latents(pipe, clips=Image.new("RGB", (16, 16), (78, 78, 78)), seeds=[1], steps=1),
    )
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))  # red that is not to be seen
    white = Image.new("L", (16, 16), 255)
    assert torch.equal(latents(pipe, clips=clear, seeds=[1], steps=1), latents(pipe, clips=white, seeds=[1], steps=1))

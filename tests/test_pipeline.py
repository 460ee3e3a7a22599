"""The pipeline: its keywords, known frames, guidance, and exports it loads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_models import latents, save_checkpoint, tiny_pipeline, tiny_transformer, tiny_vae

from eqm_video.codec import Codec
from eqm_video.errors import UserError
from eqm_video.randomness import fold
from eqm_video.samplers import NAG, GradientDescent
from eqm_video.sampling import pipeline as module
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.pipeline import EqMPipeline


@pytest.fixture(scope="module")
def pipe() -> EqMPipeline:
    return tiny_pipeline()


@pytest.fixture
def export(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "export")
    return tmp_path / "export"


def test_a_saved_pipeline_names_no_folder_and_is_as_readable_as_any_file(export, tmp_path):
    loaded = EqMPipeline.from_pretrained(export)
    loaded.save_pretrained(tmp_path / "again")
    (tmp_path / "any").touch()
    files = [path for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
        assert str(tmp_path).encode() not in path.read_bytes() and b"_name_or_path" not in path.read_bytes()
    assert loaded.config._name_or_path == str(export), "only the files are without it"
    loaded.transformer.register_to_config(_name_or_path="somebody/on-the-hub")
    loaded.save_pretrained(tmp_path / "again")
    assert b"somebody/on-the-hub" in (tmp_path / "again" / "transformer" / "config.json").read_bytes()


# Sampling -------------------------------------------------------------------------------------------------------------


def test_the_descent_is_the_algorithm_on_the_labelled_field(pipe):
    start = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(fold("sample", 7)))[None]
    times = torch.arange(3.0)[None] * 0.8  # 8 reference frames a second, 10 frames a second
    current, previous = start, start
    for _ in range(4):
        ahead = current + 0.3 * (current - previous)
        with torch.no_grad():
            gradient = pipe.transformer(ahead, torch.tensor([1]), times=times).sample
        current, previous = current - 0.05 * gradient, current
    result = pipe("down", seeds=[7], output_type="latent")
    torch.testing.assert_close(result.frames, current)
    assert result.nfe.tolist() == [4]
    decoded = pipe("down", seeds=[7], output_type="pt").frames
    torch.testing.assert_close(decoded, Codec(pipe.vae).decode(current) / 2 + 0.5)


def test_every_setting_reaches_the_sampler(pipe):
    base = latents(pipe, "up", seeds=[0])
    for changed in (
        {"steps": 5},
        {"sampler": "gd"},
        {"step_size": 0.1},
        {"mu": 0.5},
        {"guidance_scale": 2.0},
        {"fps": 4.0},
        {"seeds": [1]},
    ):
        assert not torch.equal(latents(pipe, "up", **{"seeds": [0], **changed}), base), changed
    assert latents(pipe, "up", num_frames=1, size=(8, 32)).shape == (1, 1, 4, 4, 16)
    same = latents(pipe, "up", seeds=[0], sampler=NAG(0.05, 0.3), steps=4, guidance_scale=1.0, fps=10.0)
    assert torch.equal(same, base)
    gd = latents(pipe, "up", seeds=[0], sampler="gd")
    assert torch.equal(gd, latents(pipe, "up", seeds=[0], sampler=GradientDescent(0.05)))
    assert torch.equal(latents(pipe, "up", seeds=[0], guidance_scale=0.0), latents(pipe, None, seeds=[0]))


def test_guidance_extrapolates_from_the_null_label(pipe):
    starts = latents(pipe, None, seeds=[0], steps=0)
    one = {"seeds": [0], "steps": 1, "sampler": GradientDescent(1.0)}
    null, label = (starts - latents(pipe, what, **one) for what in (None, "up"))
    guided = starts - latents(pipe, "up", guidance_scale=3.0, **one)
    torch.testing.assert_close(guided, null + 3 * (label - null), atol=1e-5, rtol=1e-4)


def test_a_seed_gives_the_same_sample_in_every_batch(pipe):
    labels = ["left", "up", None, 1]
    together = latents(pipe, labels, seeds=[3, 4, 5, 6])
    starts = latents(pipe, labels, seeds=[3, 4, 5, 6], steps=0)
    for index in range(4):
        alone = {"seeds": [3 + index]}
        assert torch.equal(latents(pipe, [labels[index]], steps=0, **alone)[0], starts[index])
        torch.testing.assert_close(latents(pipe, [labels[index]], **alone)[0], together[index], atol=1e-5, rtol=1e-4)
    assert torch.equal(latents(pipe, labels, seeds=[3, 4, 5, 6]), together)


def test_generators_instead_of_seeds(pipe):
    def made(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    two = latents(pipe, ["up", "up"], generator=made(1, 2))
    assert torch.equal(two, latents(pipe, ["up", "up"], generator=made(1, 2)))
    assert not torch.equal(two[0], two[1])
    one = latents(pipe, ["up", "up"], generator=made(1)[0])
    assert not torch.equal(one[0], one[1])
    torch.manual_seed(5)
    fresh = latents(pipe, "up")
    assert not torch.equal(fresh, latents(pipe, "up"))
    torch.manual_seed(5)
    assert torch.equal(fresh, latents(pipe, "up"))


def test_output_types(pipe):
    made = {kind: pipe(["up", "down"], seeds=[0, 1], output_type=kind).frames for kind in module.OUTPUT_TYPES}
    assert made["np"].shape == made["uint8"].shape == (2, 3, 16, 16, 3)
    assert made["pt"].shape == (2, 3, 3, 16, 16) and made["latent"].shape == (2, 3, 4, 8, 8)
    assert made["np"].dtype == np.float32 and 0 <= made["np"].min() < made["np"].max() <= 1
    assert np.abs(made["np"] * 255 - made["uint8"]).max() <= 0.51
    assert [len(clip) for clip in made["pil"]] == [3, 3]
    assert (np.asarray(made["pil"][1][2]) == made["uint8"][1, 2]).all()
    assert made["pil"][0][0].size == (16, 16)


def test_number_of_samples(pipe):
    assert len(pipe(output_type="latent").frames) == 1
    assert len(pipe(num_samples=3, output_type="latent").frames) == 3
    assert len(pipe(2, num_samples=2, output_type="latent").frames) == 2
    assert len(pipe(seeds=[1, 2], output_type="latent").frames) == 2
    assert len(pipe(np.array([1, 2]), output_type="latent").frames) == 2
    assert len(pipe(torch.tensor([1, 2, 0]), output_type="latent").frames) == 3


def test_callback_and_tolerance(pipe):
    seen = []
    result = pipe("up", seeds=[0], output_type="latent", callback=lambda step, now, gradient: seen.append((step, now)))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][1], result.frames)
    stopped = pipe(["up", "up"], seeds=[0, 1], tolerance=1e6, output_type="latent")
    assert stopped.nfe.tolist() == [1, 1]


def test_image_models_and_other_precisions():
    images = tiny_pipeline(tiny_transformer(temporal=False), frames=1)
    assert images("up", output_type="np").frames.shape == (1, 1, 16, 16, 3)
    with pytest.raises(UserError, match=r"image model.*frames=1"):
        images("up", num_frames=2)
    half = tiny_pipeline()
    half.transformer.to(torch.bfloat16)
    exact = latents(tiny_pipeline(), "up", seeds=[0])
    rough = latents(half, "up", seeds=[0])
    assert rough.dtype == torch.float32  # the descent itself stays in float32
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": "uo"}, "unknown label 'uo'; did you mean up.*known labels: up, down, left"),
        ({"labels": ["up", 4]}, "label 4 is out of range.*3 labels"),
        ({"labels": [-1]}, "out of range"),
        ({"labels": []}, "one label for each"),
        ({"labels": ["up", "up"], "num_samples": 3}, "2 labels for 3 samples"),
        ({"labels": "up", "num_samples": 0}, "num_samples"),
        ({"labels": ["up", "up"], "seeds": [1]}, "2 samples but 1 seeds"),
        ({"seeds": [1], "generator": torch.Generator()}, "exclude each other"),
        ({"num_frames": 0}, "frames is 0"),
        ({"num_frames": 2.5}, "frames is 2.5"),
        ({"fps": 0}, "fps is 0"),
        ({"size": 18}, r"18x18.*divisible by 4 = 2 \(codec\) x 2 \(patch\).*16x16"),
        ({"size": 0}, "nearest is 4x4"),
        ({"steps": -1}, "steps"),
        ({"sampler": "unipc"}, "unipc.*gd, nag"),
        ({"sampler": "gd", "mu": 0.3}, "'gd' has no mu"),
        ({"sampler": NAG(0.1), "step_size": 0.1}, "brings its own"),
        ({"step_size": -1.0}, "step_size"),
        ({"mu": 1.5}, "mu"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"output_type": "gif"}, "gif.*pil, np"),
    ],
)
def test_wrong_arguments(pipe, arguments, says):
    with pytest.raises(UserError, match=says):
        pipe(**arguments)


def test_divergence_is_a_sentence(pipe):
    with pytest.raises(UserError, match="step_size"):
        pipe("up", seeds=[0], step_size=1e30, steps=40)


def test_parts_that_do_not_fit():
    with pytest.raises(UserError, match="4 latent channels, the codec has 3"):
        EqMPipeline(tiny_transformer(), tiny_vae(latent_channels=3))
    with pytest.raises(UserError, match=r"unknown settings \['eta'\] of the sampler 'nag'"):
        tiny_pipeline(sampler={"eta": 0.1})
    with pytest.raises(UserError, match="give size"):
        tiny_pipeline(size=None)("up")
    with pytest.raises(UserError, match="labels have no names; give numbers from 0 to 2"):
        tiny_pipeline(id2label=None)("up")
    with pytest.raises(UserError, match="conditioned_on_gamma"):
        tiny_pipeline(tiny_transformer(conditioned_on_gamma=True), decay=None)("up")


# Files ----------------------------------------------------------------------------------------------------------------


def test_export_round_trip(pipe, export):
    names = {str(path.relative_to(export)) for path in export.rglob("*") if path.is_file()}
    weights = "diffusion_pytorch_model.safetensors"
    folders = ("transformer", "vae")
    assert names == {"model_index.json", *(f"{one}/{file}" for one in folders for file in ("config.json", weights))}
    loaded = EqMPipeline.from_pretrained(export)
    loaded.set_progress_bar_config(disable=True)
    for key in ("id2label", "decay", "sampler", "frames", "fps", "reference_fps", "size"):
        assert loaded.config[key] == pipe.config[key], key
    assert loaded.labels == {0: "up", 1: "down", 2: "left"}
    assert torch.equal(latents(loaded, "left", seeds=[1]), latents(pipe, "left", seeds=[1]))
    half = EqMPipeline.from_pretrained(str(export), torch_dtype=torch.bfloat16)
    assert half.transformer.dtype == half.vae.dtype == torch.bfloat16
    replaced = EqMPipeline.from_pretrained(export, vae=tiny_vae(scaling_factor=2.0), fps=5.0)
    assert replaced.vae.config.scaling_factor == 2.0 and replaced.config.fps == 5.0


def change_json(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("index", "no model_index.json.*transformer, vae"),
        ("pipeline class", "DiTPipeline, which is another architecture"),
        ("network class", "holds a DiTTransformer2DModel, another architecture"),
        ("network size", "cannot load the network.*shape"),
        ("network depth", "another architecture.*unexpected keys"),
        ("network file", r"cannot load the network .*no \.safetensors is in"),
        ("no vae", "is no whole export, since it has no folder vae"),
        ("vae", "no config.json|neither config.json"),
    ],
)
def test_what_is_no_export(export, change, says):
    network, index = export / "transformer" / "config.json", export / "model_index.json"
    if change == "index":
        index.unlink()
    elif change == "pipeline class":
        change_json(index, _class_name="DiTPipeline")
    elif change == "network class":
        change_json(network, _class_name="DiTTransformer2DModel")
    elif change == "network size":
        change_json(network, hidden_size=64)
    elif change == "network depth":
        change_json(network, depth=1)
    elif change == "network file":
        (export / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    elif change == "no vae":
        shutil.rmtree(export / "vae")
    else:
        (export / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=says):
        EqMPipeline.from_pretrained(export)


def test_checkpoints_runs_and_networks(pipe, export, tmp_path):
    tiny_vae().save_pretrained(tmp_path / "codec")
    run = tmp_path / "run"
    for step in (100, 200):
        save_checkpoint(run / "checkpoints" / f"step_{step:08d}", pipe, str(tmp_path / "codec"))
    (run / "checkpoints" / "step_00000300" / "ema").mkdir(parents=True)  # not whole
    expected = latents(pipe, "left", seeds=[1])

    settings = {key: pipe.config.sampler[key] for key in ("step_size", "mu", "steps")}

    def check(source, found, **options):
        loaded, where = load_pipeline(source, **options)
        loaded.set_progress_bar_config(disable=True)
        assert where == str(found)
        assert torch.equal(latents(loaded, [2], seeds=[1], size=16, num_frames=3, fps=10.0, **settings), expected)
        return loaded

    loaded = check(run, run / "checkpoints" / "step_00000200")
    assert loaded.labels == pipe.labels and loaded.config.sampler == pipe.config.sampler
    check(run / "checkpoints" / "step_00000100", run / "checkpoints" / "step_00000100")
    check(tmp_path / "export", tmp_path / "export")
    check(export / "transformer", export / "transformer", codec=str(tmp_path / "codec"))
    shutil.copytree(export, run / "export")
    check(run, run / "export")
    assert EqMPipeline.from_checkpoint(run / "checkpoints" / "step_00000100").config.frames == 3


def test_folders_that_cannot_be_sampled(pipe, export, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "runs" / "checkpoints" / "step_00000001", pipe, "missing-codec")
    checkpoint = tmp_path / "runs" / "checkpoints" / "step_00000001"
    with pytest.raises(UserError, match="it is a training checkpoint"):
        EqMPipeline.from_pretrained(checkpoint)
    with pytest.raises(UserError, match="it is a training run"):
        EqMPipeline.from_pretrained(tmp_path / "runs")
    with pytest.raises(UserError, match="missing-codec"):
        load_pipeline(checkpoint)
    loaded, _ = load_pipeline(checkpoint, codec=str(export / "vae"))
    assert loaded.codec.downsampling == 2
    with pytest.raises(UserError, match=r"single EqMTransformer; add its codec \(--codec\)"):
        load_pipeline(export / "transformer")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="without an export or a whole checkpoint"):
        load_pipeline(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a folder"):
        load_pipeline(tmp_path / "nothing")
    with pytest.raises(UserError, match="no whole checkpoint"):
        EqMPipeline.from_checkpoint(export)

    def offline(*arguments, **options):
        raise LocalEntryNotFoundError("cannot connect")

    monkeypatch.setattr("eqm_video.sampling.folders.snapshot_download", offline)
    with pytest.raises(UserError, match=r"owner/name.*cannot connect"):
        EqMPipeline.from_pretrained("owner/name")


def test_hub_snapshots_are_loaded_as_local_folders(export, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "eqm_video.sampling.folders.snapshot_download",
        lambda name, **options: asked.append((name, options)) or str(export),
    )
    assert EqMPipeline.from_pretrained("owner/name", revision="v1").config.frames == 3
    ((name, options),) = asked
    assert name == "owner/name" and options["revision"] == "v1"


# The landscape ------------------------------------------------------------------------------------------------------


def test_field_is_the_gradient_that_a_call_descends(pipe):
    start = pipe.start_noise([7])
    field = pipe.field(["down"], guidance_scale=2.0)
    result = latents(pipe, "down", seeds=[7], steps=1, sampler="gd", guidance_scale=2.0)
    with torch.no_grad():
        torch.testing.assert_close(result, start - 0.05 * field(start))
    assert field.forwards == 1


def test_clips_to_and_from_latents(pipe):
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
    codec = Codec(pipe.vae)
    expected = codec.encode(torch.from_numpy(clips).movedim(-1, 2).float() / 127.5 - 1)
    torch.testing.assert_close(pipe.encode(clips), expected)
    assert pipe.decode(expected).shape == clips.shape and pipe.decode(expected).dtype == np.uint8
    with pytest.raises(UserError, match=r"float64 \(2, 3, 16, 16, 3\).*uint8"):
        pipe.encode(clips.astype(float))


def test_partial_denoising_starts_between_noise_and_clip(pipe):
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
    clean, noise = pipe.encode(clips), pipe.start_noise([3, 4])
    begun = latents(pipe, ["up", "up"], seeds=[3, 4], clips=clips, start_gamma=0.75, steps=0)
    torch.testing.assert_close(begun, 0.75 * clean + 0.25 * noise)
    with pytest.raises(UserError, match=r"start_gamma is 1\.5"):
        pipe(clips=clips, start_gamma=1.5)
    with pytest.raises(UserError, match="need clips"):
        pipe(start_gamma=0.5)
    with pytest.raises(UserError, match="2 of 3 frames, but asked are 1 samples"):
        pipe(["up"], clips=clips, start_gamma=0.5)
    with pytest.raises(UserError, match="but size is 8x8"):
        pipe(clips=clips, start_gamma=0.5, size=8)


def test_known_frames_stay_as_they_are(pipe):
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
    clean = pipe.encode(clips)
    for known in ([0, -1], torch.tensor([[True, False, True]] * 2)):
        found = latents(pipe, ["up", "up"], seeds=[3, 4], clips=clips, known=known)
        assert torch.equal(found[:, [0, 2]], clean[:, [0, 2]])
        assert not torch.allclose(found[:, 1], clean[:, 1], atol=0.1)
    with pytest.raises(UserError, match="known frame 3"):
        pipe(clips=clips, known=[3])


@pytest.mark.parametrize(
    "known",
    [
        np.array([0, 2]),
        torch.tensor([0, -1]),
        [np.int64(0), 2],
        iter([0, 2]),
        {0, 2},
        np.array([[True, False, True]] * 2),
    ],
    ids=lambda known: type(known).__name__,
)
def test_known_frames_by_every_kind_of_number(pipe, known):
    how = {"clips": two_clips(), "seeds": [3, 4], "steps": 1}
    assert torch.equal(latents(pipe, **how, known=known), latents(pipe, **how, known=[0, 2]))


@pytest.mark.parametrize("known", [3, [0.0], [True], "first", np.zeros((2, 3)), torch.tensor(0)], ids=str)
def test_what_is_no_frame_is_one_sentence(pipe, known):
    with pytest.raises(UserError, match=r"it must be a list of frame numbers, such as \[0, -1\], or bool \(B, T\)"):
        pipe(clips=two_clips(), known=known)


def two_clips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)


def test_clips_that_nothing_would_be_seen_of_are_refused(pipe):
    for known in (None, [], torch.zeros(2, 3, dtype=torch.bool)):
        with pytest.raises(UserError, match="no frame of them is known and start_gamma is 0"):
            pipe(clips=two_clips(), known=known, seeds=[0, 1])
        for more in ({"context_gamma": 0.9}, {"history_guidance": 2.0}):
            with pytest.raises(UserError, match="are about known frames: give known= at least one frame"):
                pipe(clips=two_clips(), known=known, start_gamma=0.5, **more)


def test_every_sample_is_at_its_own_rate(pipe):
    both = latents(pipe, ["up", "left"], seeds=[0, 1], fps=[5.0, 20.0], guidance_scale=2.0)
    for row, (label, rate) in enumerate((("up", 5.0), ("left", 20.0))):
        alone = latents(pipe, [label], seeds=[row], fps=rate, guidance_scale=2.0)
        torch.testing.assert_close(alone[0], both[row], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(latents(pipe, [label], seeds=[row], guidance_scale=2.0)[0], both[row], atol=1e-3)
    for wrong, says in (([5.0], "2 samples but 1 fps"), ([5.0, 0], "fps is 0"), ("5", "fps is '5'")):
        with pytest.raises(UserError, match=says):
            pipe(["up", "left"], fps=wrong)


def test_latents_of_another_codec_or_size_get_no_advice_to_resize(pipe):
    own = pipe.encode(two_clips())
    assert latents(pipe, clips=own, known=[0], steps=0).shape == own.shape
    for foreign in (own[..., :4, :4], own[:, :, :3], own.repeat(1, 1, 4, 1, 1)):
        with pytest.raises(
            UserError, match=r"another codec or size: theirs are .* this model's are \(4, 8, 8\)"
        ) as said:
            pipe(clips=foreign, known=[0])
        assert str(tuple(foreign.shape[2:])) in str(said.value) and "size=" not in str(said.value)
    assert latents(pipe, clips=own[..., :4, :4], known=[0], size=8, steps=0).shape == (2, 3, 4, 4, 4)


def test_a_conditioned_network_has_no_context_gamma():
    flow = tiny_pipeline(tiny_transformer(conditioned_on_gamma=True), decay={"kind": "constant", "gain": 1.0})
    how = {"clips": two_clips(), "known": [0], "sampler": "euler", "steps": 2}
    assert latents(flow, **how).shape == (2, 3, 4, 8, 8)
    with pytest.raises(UserError, match=r"context_gamma .* needs a network without that condition"):
        flow(**how, context_gamma=0.9)


def test_solvers_have_no_frame_schedule(pipe):
    calls = []
    with pytest.raises(UserError, match=r"leave frame_schedule \(--frame-schedule\) out"):
        pipe("up", sampler="euler", frame_schedule="pyramid", callback=lambda *_: calls.append(1))
    assert calls == []


@pytest.mark.parametrize("energy", ["dot", "l2"])
def test_an_explicit_energy_descends_its_true_gradient_never_the_raw_output(energy):
    network = tiny_transformer(energy=energy)
    made = tiny_pipeline(network)
    start = made.start_noise([7])
    point = start.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        raw = network(point, torch.tensor([1]), times=torch.arange(3.0)[None] * 0.8).sample
    value = (point * raw).sum() if energy == "dot" else raw.square().sum() / 2
    (gradient,) = torch.autograd.grad(value, point)
    found = latents(made, "down", seeds=[7], steps=1, sampler="gd")
    torch.testing.assert_close(found, start - 0.05 * gradient, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, start - 0.05 * raw.detach(), atol=1e-3)
    energies = made.field(["down"]).energies(start)
    torch.testing.assert_close(energies.sum(), value.detach(), rtol=1e-4, atol=1e-4)


def test_composition_is_a_weighted_sum_of_fields(pipe):
    start = pipe.start_noise([7])
    with torch.no_grad():
        up, left, null = (pipe.field([label])(start) for label in ("up", "left", None))
    options = {"seeds": [7], "steps": 1, "sampler": "gd"}
    found = latents(pipe, composition=[("up", 2.0), ("left", 1.5)], **options)
    torch.testing.assert_close(found, start - 0.05 * (2 * up + 1.5 * left - 2.5 * null))
    found = latents(pipe, composition=[("up", 1.0), ("left", 1.0)], plain_sum=True, **options)
    torch.testing.assert_close(found, start - 0.05 * (up + left))
    guided = latents(pipe, "up", guidance_scale=3.0, **options)
    torch.testing.assert_close(latents(pipe, composition=[("up", 3.0)], **options), guided)
    torch.manual_seed(5)
    other = tiny_pipeline(tiny_transformer(depth=1))
    with torch.no_grad():
        theirs = other.field(["down"])(start)
    found = latents(pipe, composition=[("up", 0.5), ("down", 0.5, other)], **options)
    torch.testing.assert_close(found, start - 0.05 * (up + theirs) / 2)


def test_a_conditioned_network_gets_the_gamma_of_the_descent():
    network = tiny_transformer(conditioned_on_gamma=True)
    flow = tiny_pipeline(network, decay={"kind": "constant", "gain": 1.0}, sampler={"kind": "euler", "steps": 4})
    labels, times = torch.tensor([1]), torch.arange(3.0)[None] * 0.8
    current = flow.start_noise([7])
    with torch.no_grad():
        for step in range(4):
            gamma = torch.full((1, 3), step / 4)
            current = current - network(current, labels, times=times, gamma=gamma).sample / 4
    torch.testing.assert_close(latents(flow, "down", seeds=[7]), current, rtol=1e-4, atol=1e-5)
    # A descent follows the same path: with c = 1 and eta = 1 / N its closed-form gamma is k / N.
    descent = latents(flow, "down", seeds=[7], sampler="gd", step_size=0.25)
    torch.testing.assert_close(descent, current, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"needs gamma.*euler, heun or dopri5"):
        flow("down", sampler="adam")
    clips = np.zeros((1, 3, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="cannot hold some"):
        flow("down", clips=clips, known=[0], sampler="gd", step_size=0.25)
    held = latents(flow, "down", seeds=[7], clips=clips, known=[0])  # a solver tells each frame its own
    assert torch.equal(held[:, 0], flow.encode(clips)[:, 0]) and not torch.allclose(held[:, 1], current[:, 1])


def test_guidance_of_a_part_of_the_descent(pipe):
    plain = latents(pipe, "up", seeds=[7], steps=2)
    late = latents(pipe, "up", seeds=[7], steps=2, guidance_scale=4.0, guidance_interval=(0.5, 1))
    early = latents(pipe, "up", seeds=[7], steps=2, guidance_scale=4.0, guidance_interval=(0, 0.5))
    whole = latents(pipe, "up", seeds=[7], steps=2, guidance_scale=4.0)
    first = latents(pipe, "up", seeds=[7], steps=1, guidance_scale=4.0)
    assert len({round(float(one.sum()), 4) for one in (plain, late, early, whole)}) == 4
    torch.testing.assert_close(
        latents(pipe, "up", seeds=[7], steps=1),
        latents(pipe, "up", seeds=[7], steps=1, guidance_scale=4.0, guidance_interval=(0.5, 1)),
    )
    torch.testing.assert_close(
        first, latents(pipe, "up", seeds=[7], steps=1, guidance_scale=4.0, guidance_interval=(0, 0.5))
    )


def test_an_automatic_step_needs_the_measured_curvature(pipe):
    with pytest.raises(UserError, match="type eqm-video curvature MODEL --write"):
        pipe("up", step_size="auto")
    measured = tiny_pipeline(curvature={"largest": 20.0, "guidance_scale": 1.0})
    assert measured.rule("gd", "auto", steps=4).step_size == pytest.approx(0.5 * 2 / 20)  # half the limit binds
    assert measured.rule("nag", "auto", steps=4).step_size == pytest.approx(0.5 * 2 / 20 / 1.6)
    assert measured.rule("nag", "auto", steps=400).step_size < 0.01  # the way is short for so many steps
    with pytest.warns(UserWarning, match=r"step_size 0\.2 is beyond 0\.1, the limit measured"):
        measured("up", sampler="gd", step_size=0.2)
    with pytest.warns(UserWarning, match=r"is beyond 0\.025"):  # the weights of a composition are its guidance
        measured(composition=[("up", 2.0), ("left", 2.0)], sampler="gd", step_size=0.03)
    with pytest.raises(UserError, match="brings its own step_size"):
        measured("up", sampler=NAG(0.1), step_size="auto")
    with pytest.raises(UserError, match="no step limit"):
        measured("up", sampler="heun", step_size="auto")


def test_an_automatic_step_makes_up_for_a_falling_schedule():
    measured = tiny_pipeline(curvature={"largest": 1e-3, "guidance_scale": 1.0})
    sizes = [measured.rule("gd", "auto", steps=100, step_schedule=name).step_size for name in ("constant", "linear")]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.05)


def test_numbers_of_one_sampler_are_not_those_of_another(pipe):
    assert pipe.rule("gd").step_size == pipe.rule("langevin", temperature=0.1).step_size == 0.05
    assert pipe.rule("adam").step_size == type(pipe.rule("adam"))().step_size != 0.05


def test_exports_that_carry_a_number_of_another_sampler_load() -> None:
    older = tiny_pipeline(sampler={"kind": "gd", "step_size": 0.1, "mu": 0.35, "steps": 4})
    assert older.rule() == GradientDescent(0.1) and "mu" not in older.config.sampler


def test_what_a_composition_would_ignore_is_refused(pipe):
    for more in ({"labels": ["up"]}, {"guidance_scale": 2.0}, {"match_norm": True}, {"guidance_interval": (0, 0.5)}):
        with pytest.raises(UserError, match="takes the place of labels and of guidance"):
            pipe(composition=[("up", 1.0)], seeds=[0], **more)
    with pytest.raises(UserError, match="give composition="):
        pipe("up", plain_sum=True)
    with pytest.raises(UserError, match="same one"):
        pipe(composition=[("up", 1.0), ("up", 1.0, other_codec())], seeds=[0])


def other_codec() -> EqMPipeline:
    other = tiny_pipeline()
    with torch.no_grad():
        other.vae.decoder.conv_in.weight += 1
    return other

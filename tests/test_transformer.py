"""The network: frames, times, batches, positions, chunks, checkpointing, compilation, precision, errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from eqm_video.models import layers
from eqm_video.models.layers import GammaEmbedding, attend, position_table, rotate, time_rotation
from eqm_video.models.recompute import keep_products
from eqm_video.models.transformer import EqMOutput, EqMTransformer

SIZES = {"hidden_size": 32, "depth": 2, "num_heads": 4, "num_labels": 5}
B, T, C, H, W = 3, 4, 4, 6, 8


def network(seed: int = 0, *, randomised: str = "all", dtype: torch.dtype = torch.float64, **options) -> EqMTransformer:
    """A small network; `randomised`: "all" weights, "spatial" (temporal ones at their initialisation) or "none"."""
    torch.manual_seed(seed)
    model = EqMTransformer(**{**SIZES, **options})
    generator = torch.Generator().manual_seed(seed + 1)
    for name, weight in sorted(model.named_parameters()):  # sorted, so that spatial weights agree between networks
        if "temporal" not in name and randomised != "none":
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    if randomised == "all":
        for name, weight in sorted(model.named_parameters()):
            if "temporal" in name:
                weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return torch.nn.Module.to(model, dtype).eval()


def latents(seed: int = 0, clips: int = B, frames: int = T, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(clips, frames, C, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


LABELS = torch.tensor([0, 3, 5])


@torch.no_grad()
def test_output_shapes_and_names() -> None:
    output = network()(latents(), LABELS)
    assert isinstance(output, EqMOutput)
    assert output.sample.shape == (B, T, C, H, W)
    assert output.hidden.shape == (B, T, (H // 2) * (W // 2), 32)
    assert output.sample.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_frame_is_the_spatial_network_bit_for_bit(dtype: torch.dtype) -> None:
    video, image = network(dtype=dtype), network(temporal=False, dtype=dtype)
    own, shared = dict(video.named_parameters()), dict(image.named_parameters())
    assert shared.keys() < own.keys()
    assert all(torch.equal(own[name], weight) for name, weight in shared.items())
    still = latents(frames=1, dtype=dtype)
    for times in (None, torch.full((B, 1), 7.5)):
        assert torch.equal(video(still, LABELS, times=times).sample, image(still, LABELS).sample)
        assert torch.equal(video(still, LABELS, times=times).hidden, image(still, LABELS).hidden)


@torch.no_grad()
@pytest.mark.parametrize("conditioned", [False, True])
def test_untouched_temporal_layers_leave_every_frame_to_the_image_network(conditioned: bool) -> None:
    options = {"conditioned_on_gamma": conditioned}
    video, image = network(randomised="spatial", **options), network(temporal=False, **options)
    clips, gamma = latents(), torch.linspace(0, 1, B * T).reshape(B, T) if conditioned else None
    sample = video(clips, LABELS, gamma=gamma).sample
    for frame in range(T):
        part = slice(frame, frame + 1)
        alone = image(clips[:, part], LABELS, gamma=None if gamma is None else gamma[:, part]).sample
        torch.testing.assert_close(sample[:, part], alone, rtol=1e-12, atol=1e-12)
    assert sample.std() > 0.1  # a zero head would prove nothing


@torch.no_grad()
def test_the_gates_of_fresh_networks_are_zero() -> None:
    model = network(randomised="none")
    assert torch.count_nonzero(model(latents(), LABELS).sample) == 0
    for name, weight in model.named_parameters():
        assert bool(weight.any()) == (name.endswith("weight") and "modulation" not in name and "head" not in name), name


@torch.no_grad()
def test_the_order_of_frames_matters() -> None:
    model, clips = network(), latents()
    forwards = model(clips, LABELS).sample
    backwards = model(clips.flip(1), LABELS).sample.flip(1)
    assert (forwards - backwards).abs().mean() > 0.01 * forwards.std()
    carried = model(clips.flip(1), LABELS, times=torch.arange(T).flip(0).expand(B, T)).sample.flip(1)
    torch.testing.assert_close(carried, forwards, rtol=1e-10, atol=1e-12)  # frames are a set, their times the order


@torch.no_grad()
def test_each_clip_is_independent_of_its_batch() -> None:
    model, clips = network(conditioned_on_gamma=True), latents()
    times, gamma = torch.rand(B, T) * 9, torch.rand(B, T)
    together = model(clips, LABELS, times=times, gamma=gamma).sample
    for clip in range(B):
        part = slice(clip, clip + 1)
        alone = model(clips[part], LABELS[part], times=times[part], gamma=gamma[part]).sample
        torch.testing.assert_close(together[part], alone, rtol=1e-11, atol=1e-12)
    others = clips.clone()
    others[1:] = 100 * torch.randn_like(others[1:])
    torch.testing.assert_close(model(others, LABELS, times=times, gamma=gamma).sample[0], together[0])


@torch.no_grad()
def test_times_are_real_valued_and_only_their_differences_matter() -> None:
    model, clips = network(), latents()
    times = torch.tensor([0.0, 0.5, 1.75, 4.0]).expand(B, T)
    sample = model(clips, LABELS, times=times).sample
    assert (sample - model(clips, LABELS).sample).abs().mean() > 1e-3
    assert (sample - model(clips, LABELS, times=times + 0.3 * torch.arange(T)).sample).abs().mean() > 1e-3
    torch.testing.assert_close(model(clips, LABELS, times=times.double() + 100).sample, sample, rtol=1e-8, atol=1e-9)
    default = model(clips, LABELS, times=torch.arange(T).expand(B, T)).sample
    assert torch.equal(default, model(clips, LABELS).sample)


@torch.no_grad()
def test_double_fps_at_double_interval_is_the_same_clip() -> None:
    """Times are seconds x reference frames a second, so what counts is when a frame was taken."""
    model, clips, reference_fps = network(), latents(), 8.0
    outputs = []
    for fps, interval in ((25.0, 3), (50.0, 6)):
        seconds = torch.arange(T, dtype=torch.float64) * interval / fps
        outputs.append(model(clips, LABELS, times=(seconds * reference_fps).expand(B, T)).sample)
    assert torch.equal(*outputs)


def test_rotation_has_the_angles_of_the_equation() -> None:
    times = torch.tensor([[0.0, 0.5, 20.0]], dtype=torch.float64)
    cosine, sine = time_rotation(times, 8, 256.0)
    assert cosine.shape == (1, 1, 1, 3, 4)
    for k in range(4):
        angle = 20.0 * 256.0 ** (-k / 4)
        assert cosine[0, 0, 0, 2, k].item() == pytest.approx(math.cos(angle), abs=1e-13)
        assert sine[0, 0, 0, 2, k].item() == pytest.approx(math.sin(angle), abs=1e-13)
    heads = torch.randn(1, 2, 3, 3, 8, dtype=torch.float64)
    turned = rotate(heads, torch.stack([cosine, sine]))
    torch.testing.assert_close(turned.norm(dim=-1), heads.norm(dim=-1))
    assert torch.equal(turned[..., 0, :], heads[..., 0, :])  # time 0


def test_low_precision_networks_keep_exact_times() -> None:
    """bfloat16 cannot tell 300 from 301: the rotation must be computed in float32 and applied there."""
    model = network(dtype=torch.bfloat16)
    rotation = model._rotation(torch.tensor([[300.0, 301.0]]), clips=1, frames=2, device=torch.device("cpu"))
    exact = time_rotation(torch.tensor([[300.0, 301.0]], dtype=torch.float64), 8, 256.0)
    assert rotation.dtype == torch.float32
    assert (rotation - exact).abs().max() < 1e-4
    double = network()._rotation(torch.tensor([[300.0, 301.0]]), clips=1, frames=2, device=torch.device("cpu"))
    torch.testing.assert_close(double, exact, rtol=0, atol=1e-12)


def test_positions_of_a_rectangle_are_column_first() -> None:
    table = position_table(2, 3, 16, torch.device("cpu"), torch.float64)
    assert table.shape == (6, 16)
    assert torch.equal(table, table.float().double())  # rounded to float32
    for row in range(2):
        for column in range(3):
            found = table[row * 3 + column].tolist()
            frequencies = [10_000.0 ** (-k / 4) for k in range(4)]
            wanted = [math.sin(column * f) for f in frequencies] + [math.cos(column * f) for f in frequencies]
            wanted += [math.sin(row * f) for f in frequencies] + [math.cos(row * f) for f in frequencies]
            assert found == pytest.approx(wanted, abs=6e-8)


def test_a_table_made_while_sampling_serves_training() -> None:
    position_table.cache_clear()
    model, clips = network(), latents()
    with torch.inference_mode():
        model(clips, LABELS)
    model(clips, LABELS).sample.square().mean().backward()
    assert model.patch_embed.weight.grad.abs().sum() > 0
    assert not [name for name, _ in model.named_buffers()]


@torch.no_grad()
def test_attention_in_time_in_every_second_block(tmp_path) -> None:
    model, clips = network(depth=4, temporal_every=2), latents()
    names = [name for name, _ in model.named_parameters() if "temporal" in name]
    assert {name.split(".")[1] for name in names} == {"1", "3"}
    moved = clips.clone()
    moved[:, 1] += 1
    output, after = model(clips, LABELS).sample, model(moved, LABELS).sample
    assert not torch.equal(output[:, 0], after[:, 0])  # frames see each other
    image = network(depth=4, temporal=False)
    assert torch.equal(model(clips[:, :1], LABELS).sample, image(clips[:, :1], LABELS).sample)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["temporal_every"] == 2
    again = EqMTransformer.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert torch.equal(again(clips, LABELS).sample, output)
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=f"temporal_every {wrong} must be at least 1 and at most the depth 2"):
            network(temporal_every=wrong)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width", "patch"), [(2, 2, 2), (4, 10, 2), (12, 4, 4), (5, 3, 1)])
def test_any_size_that_the_patch_divides(height: int, width: int, patch: int) -> None:
    clips = torch.randn(2, 3, C, height, width, dtype=torch.float64)
    model = network(patch_size=patch)
    assert model(clips).sample.shape == clips.shape
    # each output pixel belongs to its input pixel: a head that copies the patch must give the latents back
    values = model._patches(clips)
    ordered = values.unflatten(-1, (C, patch, patch)).permute(0, 1, 2, 4, 5, 3).flatten(3)
    assert torch.equal(model._unpatch(ordered, height // patch, width // patch), clips)


@torch.no_grad()
def test_attention_never_meets_the_limit_of_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clips = network(), latents()
    whole = model(clips, LABELS).sample
    sizes = []

    def counted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sizes.append(query.shape[0])
        return scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", counted)
    assert torch.equal(model(clips, LABELS).sample, whole)
    assert max(sizes) == B * (H // 2) * (W // 2)  # the temporal sequences of all clips, in one call
    calls = len(sizes)
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(layers, "LIMITED", (device,))
        for limit in (7, 1):
            sizes.clear()
            monkeypatch.setattr(layers, "MAX_SEQUENCES", limit)
            torch.testing.assert_close(model(clips, LABELS).sample, whole, rtol=1e-12, atol=1e-12)
            split = max(sizes) <= limit and len(sizes) > calls
            assert split if device == "cpu" else len(sizes) == calls  # the network is on the CPU


def test_seventy_thousand_sequences_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LIMITED", ("cpu",))
    query, key, value = (torch.randn(70_000, 1, 2, 2) for _ in range(3))
    split = attend(query, key, value)
    for part in (slice(0, 50), slice(65_500, 65_600), slice(69_950, 70_000)):
        torch.testing.assert_close(split[part], scaled_dot_product_attention(query[part], key[part], value[part]))


@pytest.mark.parametrize("temporal", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(temporal: bool) -> None:
    model, clips = network(temporal=temporal), latents().requires_grad_(True)
    gradients, inner = [], []
    for switch in (model.disable_gradient_checkpointing, model.enable_gradient_checkpointing):
        switch()
        model.zero_grad()
        clips.grad = None
        runs = [0]
        hook = model.blocks[0].mlp.register_forward_hook(lambda *_, runs=runs: runs.__setitem__(0, runs[0] + 1))
        model(clips, LABELS).sample.square().mean().backward()
        hook.remove()
        inner.append(runs[0])
        gradients.append([clips.grad, *(weight.grad for weight in model.parameters())])
    assert inner == [1, 2]  # the second time blocks are run again in the backward pass
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-14)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


@pytest.mark.parametrize("temporal", [False, True])
def test_selective_checkpointing_keeps_products_and_gives_the_same_bits(temporal: bool) -> None:
    model, clips = network(temporal=temporal, dtype=torch.float32), latents(dtype=torch.float32)
    gradients, flops = [], []
    for keep in (None, partial(checkpoint, use_reentrant=False), keep_products):
        model.enable_gradient_checkpointing(keep) if keep else model.disable_gradient_checkpointing()
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            model(clips, LABELS).sample.square().mean().backward()
        flops.append(counter.get_total_flops())
        gradients.append([weight.grad for weight in model.parameters()])
    plain, block, selective = flops
    assert block > plain == selective  # no matrix product is computed again
    for others in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(gradients[0], others, strict=True))


def test_a_block_compiles_whole() -> None:
    """With `fullgraph` a graph break is an error; forward and backward through the traced graph."""
    model = network(dtype=torch.float32)
    clips = latents(dtype=torch.float32)
    expected = model(clips, LABELS).sample
    model.compile_repeated_blocks(backend="aot_eager", fullgraph=True, dynamic=False)
    compiled = model(clips, LABELS).sample
    torch.testing.assert_close(compiled, expected)
    compiled.square().mean().backward()
    assert model.blocks[0].temporal.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("every", [1, 2])
def test_buckets_and_images_share_a_few_compiled_graphs(every: int) -> None:
    """As in training: forward and backward passes of each shape, compiled block by block without a break."""
    torch._dynamo.reset()
    counters.clear()
    model = network(dtype=torch.float32, depth=3, temporal_every=every)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    for clips, frames in ((2, 4), (2, 3), (2, 6), (2, 5), (6, 1), (2, 7)):  # buckets, and a pass of images
        shape = torch.randn(clips, frames, C, H, W)
        model(shape, torch.zeros(clips, dtype=torch.long)).sample.square().mean().backward()
    torch._dynamo.reset()
    assert counters["graph_break"] == {} and 2 <= counters["stats"]["unique_graphs"] <= 8


def test_second_derivatives_exist_with_the_math_kernel() -> None:
    """The explicit energy descends the gradient of x . f(x), and trains through it."""
    model, clips = network(), latents().requires_grad_(True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        energy = (clips * model(clips, LABELS).sample).sum()
        (slope,) = torch.autograd.grad(energy, clips, create_graph=True)
        slope.square().mean().backward()
    assert model.blocks[0].spatial.qkv.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_bfloat16_is_finite_and_near() -> None:
    exact = network(dtype=torch.float32)(latents(dtype=torch.float32), LABELS)
    model = network(dtype=torch.bfloat16)
    half = model(latents(dtype=torch.float32), LABELS)
    assert half.sample.dtype == torch.float32  # a descent in float32 keeps its small steps
    assert half.hidden.dtype == torch.bfloat16
    assert model(latents(dtype=torch.bfloat16), LABELS).sample.dtype == torch.bfloat16
    assert half.sample.isfinite().all()
    assert (half.sample - exact.sample).norm() < 0.05 * exact.sample.norm()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(dtype=torch.float32)(latents(dtype=torch.float32), LABELS)
    assert mixed.sample.dtype == mixed.hidden.dtype == torch.float32
    assert (mixed.sample - exact.sample).norm() < 0.05 * exact.sample.norm()


@torch.no_grad()
def test_no_labels_is_the_null_label() -> None:
    model, clips = network(), latents()
    assert model.null_label == 5
    assert torch.equal(model(clips).sample, model(clips, torch.full((B,), 5)).sample)
    assert not torch.equal(model(clips).sample, model(clips, torch.full((B,), 4)).sample)
    assert torch.equal(model(clips, LABELS.int()).sample, model(clips, LABELS).sample)


@torch.no_grad()
def test_gamma_conditions_each_frame() -> None:
    model, clips = network(conditioned_on_gamma=True, temporal=False), latents()
    gamma = torch.rand(B, T)
    sample = model(clips, LABELS, gamma=gamma).sample
    other = gamma.clone()
    other[1, 2] += 0.3
    changed = (model(clips, LABELS, gamma=other).sample - sample).abs().amax(dim=(2, 3, 4)) > 1e-6
    assert changed.nonzero().tolist() == [[1, 2]]
    silent = network(temporal=False)(clips, LABELS).sample
    torch.testing.assert_close(model(clips, LABELS, gamma=torch.zeros(B, T)).sample, silent)


def test_sinusoids_of_gamma_are_float32_except_in_float64() -> None:
    embedding = GammaEmbedding(8)
    seen = []
    embedding.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    gamma = torch.tensor([[0.3, 0.9]], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        embedding.to(dtype)(gamma, dtype)
    exact = 0.9 * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    assert (seen[0][0, 1, 128:] - exact.sin()).abs().max() < 1e-15
    assert 1e-9 < (seen[1][0, 1, 128:] - exact.sin()).abs().max() < 1e-6
    assert torch.equal(seen[2], seen[1].bfloat16())


@torch.no_grad()
def test_saving_and_loading(tmp_path) -> None:
    model = network(conditioned_on_gamma=True, rope_base=64.0)
    model.save_pretrained(tmp_path)
    loaded = EqMTransformer.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert dict(loaded.config).items() >= {**SIZES, "rope_base": 64.0, "conditioned_on_gamma": True}.items()
    gamma = torch.rand(B, T)
    assert torch.equal(loaded(latents(), LABELS, gamma=gamma).sample, model(latents(), LABELS, gamma=gamma).sample)
    again = EqMTransformer.from_pretrained(tmp_path)
    assert again.dtype == torch.float32


@torch.no_grad()
def test_eight_bit_storage_works() -> None:
    model, clips = network(dtype=torch.float32), latents(dtype=torch.float32)
    exact = model(clips, LABELS).sample
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.blocks[0].spatial.qkv.weight.dtype == torch.float8_e4m3fn
    assert (model(clips, LABELS).sample - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"latents": latents()[:, 0]}, r"must be \(B,T,C,H,W\) with C = 4, not \(3, 4, 6, 8\)"),
        ({"latents": latents()[:, :, :3]}, r"C = 4, not \(3, 4, 3, 6, 8\)"),
        ({"latents": latents()[..., :7]}, "height 6 and width 7 must be divisible by the patch size 2"),
        ({"labels": torch.tensor([0, 6, 1])}, "must lie in 0…5 .5 is the null label., but they run from 0 to 6"),
        ({"labels": torch.tensor([0, -1, 1])}, "they run from -1 to 1"),
        ({"labels": torch.tensor([0, 1])}, r"labels must be \(3,\) integers, not \(2,\)"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "integers, not .* of torch.float32"),
        ({"times": torch.zeros(T)}, r"times must be \(B,T\) = \(3, 4\), not \(4,\)"),
        ({"gamma": torch.zeros(B, T)}, "not conditioned on gamma: leave gamma out"),
    ],
)
def test_wrong_inputs_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        network()(**{"latents": latents(), "labels": LABELS, **changes})


def test_wrong_gamma_is_refused() -> None:
    model = network(conditioned_on_gamma=True)
    with pytest.raises(ValueError, match=r"conditioned on gamma: pass gamma=\(B,T\)"):
        model(latents(), LABELS)
    with pytest.raises(ValueError, match=r"gamma must be \(B,T\) = \(3, 4\), not \(3,\)"):
        model(latents(), LABELS, gamma=torch.zeros(B))


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"hidden_size": 30, "num_heads": 3}, "hidden_size 30 must be divisible by 4"),
        ({"hidden_size": 32, "num_heads": 5}, "by num_heads 5"),
        ({"hidden_size": 12, "num_heads": 4}, "heads of even width"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EqMTransformer(**{**SIZES, **sizes})


def test_attributes_that_diffusers_needs_exist() -> None:
    from eqm_video.models import transformer

    assert hasattr(transformer, "ModelMixin")  # diffusers looks for it in the module that a saved pipeline names
    assert EqMTransformer._no_split_modules == EqMTransformer._repeated_blocks == ["EqMBlock"]
    code = "import sys, eqm_video.models; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_what_all_blocks_and_frames_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = EqMTransformer(in_channels=2, patch_size=2, hidden_size=32, depth=3, num_heads=2, num_labels=2)
    rotations, shapes = [], {}
    monkeypatch.setattr(
        "eqm_video.models.transformer.time_rotation", lambda *given: rotations.append(1) or time_rotation(*given)
    )
    for name, module in network.named_modules():
        if isinstance(module, layers.Modulation) or name in ("label_embed", "gamma_embed"):
            keep = partial(lambda name, module, given: shapes.setdefault(name, []).append(tuple(given[0].shape)), name)
            module.register_forward_pre_hook(keep)
    latents, labels = torch.randn(2, 5, 2, 4, 4), torch.tensor([0, 1])
    network(latents, labels)
    assert len(rotations) == 1 and shapes.pop("label_embed") == [(2,)] and shapes.pop("gamma_embed") == [(1, 1)]
    assert len(shapes) == 7 and set(map(tuple, shapes.values())) == {((2, 1, 32),)}  # a row for a clip, not a frame
    table = position_table(2, 2, 32, latents.device, torch.float32)
    assert table is position_table(2, 2, 32, latents.device, torch.float32)

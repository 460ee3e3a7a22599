"""Steps of several shapes, and of clips and images together: who gets which sample, the gradient, and the log."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState
from joint_gradient import joint_gradient
from tiny_run import MemoryClips, encode, equal, read_metrics, tiny_network, tiny_trainer, weights

from eqm_video.core.decay import TruncatedDecay
from eqm_video.core.gamma import ContextGamma, MixtureGamma, SharedGamma
from eqm_video.errors import UserError
from eqm_video.randomness import generator
from eqm_video.training.batches import BatchPlan
from eqm_video.training.tracking import Meter

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


# ----------------------------------------------------------------------------------------------------------- the plan


def test_the_shape_of_a_step_comes_from_seed_and_step_and_by_its_weight() -> None:
    plan = BatchPlan(size=10, batch_size=4, seed=1, weights=(2.0, 0.5, 1.5))
    views = [plan.view(step, 0) for step in range(2000)]
    counts = Counter(views)
    for view, share in ((0, 0.5), (1, 0.125), (2, 0.375)):
        assert counts[view] / 2000 == pytest.approx(share, abs=0.04)
    for other in (
        BatchPlan(size=10, batch_size=4, seed=1, accumulation=2, weights=(2.0, 0.5, 1.5)),
        BatchPlan(size=99, batch_size=8, seed=1, rank=1, world=2, weights=(2.0, 0.5, 1.5)),
    ):
        assert [other.view(step, other.passes - 1) for step in range(50)] == views[:50]
    assert [BatchPlan(10, 4, seed=2, weights=(2.0, 0.5, 1.5)).view(step, 0) for step in range(50)] != views[:50]


def test_clips_keep_their_requests_beside_images() -> None:
    """Position, index and seed of a clip do not depend on there being images, whose positions follow."""
    alone = BatchPlan(size=10, batch_size=4, seed=1)
    joint = BatchPlan(size=10, batch_size=6, seed=1, images=2, image_size=3)
    for step in (0, 3):
        assert joint.requests(step, 1) == alone.requests(step, 0)
        assert (list(joint.positions(0)), list(joint.positions(1))) == ([4, 5], [0, 1, 2, 3])
        assert {view for view, *_ in joint.requests(step, 0)} == {1}
    walk = [index for step in range(6) for _, index, _ in joint.requests(step, 0)]
    assert all(sorted(walk[start : start + 3]) == [0, 1, 2] for start in range(0, 12, 3))
    seeds = [seed for step in range(20) for number in range(2) for *_, seed in joint.requests(step, number)]
    assert len(set(seeds)) == len(seeds)


def test_processes_and_accumulation_share_out_the_same_samples() -> None:
    settings = {"size": 10, "batch_size": 12, "seed": 1, "images": 4, "image_size": 7, "weights": (1.0, 1.0)}
    whole = BatchPlan(**settings)
    expected = {p: r for n in range(2) for p, r in zip(whole.positions(n), whole.requests(3, n), strict=True)}
    assert sorted(expected) == list(range(12)) and whole.passes == 2
    parts = {}
    for rank in range(2):
        plan = BatchPlan(**settings, accumulation=2, rank=rank, world=2)
        assert plan.passes == 4 and [len(plan.positions(number)) for number in range(4)] == [1, 1, 2, 2]
        assert [plan.pieces(number) for number in range(4)] == [6, 6, 3, 3]
        for number in range(4):
            parts |= dict(zip(plan.positions(number), plan.requests(3, number), strict=True))
    assert parts == expected


def test_images_that_do_not_divide_over_processes_say_so() -> None:
    with pytest.raises(UserError, match=r"makes 6 of train.batch_size=32 samples images.*2 x 2 = 4; type.*=0.125"):
        BatchPlan(size=10, batch_size=32, seed=0, images=6, image_size=3, accumulation=2, world=2)
    with pytest.raises(UserError, match="the data set is empty"):
        BatchPlan(size=10, batch_size=4, seed=0, images=2)


# ------------------------------------------------------------------------------------------------------- the gradient


def written_out(energy: str = "implicit") -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over all samples of a joint step, one sample at a time, from its definition."""
    plan = BatchPlan(size=6, batch_size=8, seed=0, weights=(1.0,) * 3, images=4, image_size=5)
    network, decay, losses = tiny_network(energy=energy), TruncatedDecay(a=0.8, gain=4.0), []
    sets = [MemoryClips(frames=frames) for frames in (2, 3, 4)] + [MemoryClips(size=5, frames=1)]
    for number in range(2):
        for position, (view, *request) in zip(plan.positions(number), plan.requests(0, number), strict=True):
            batch = sets[view].collate([sets[view][tuple(request)]])
            small, large = generator(0, "gamma", 1, position), generator(0, "noise", 1, position)
            dropped = torch.rand((), generator=small) < 0.1
            clean = encode(batch, None)
            noise, gamma = torch.randn(clean.shape[1:], generator=large)[None], torch.rand(1, generator=small)
            label = torch.full_like(batch["labels"], network.null_label) if dropped else batch["labels"]
            noisy = (gamma * clean + (1 - gamma) * noise).requires_grad_()
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                sample = network(noisy, label, times=batch["times"] * 8).sample
                if energy == "dot":
                    (sample,) = torch.autograd.grad((noisy * sample).sum(), noisy, create_graph=True)
            losses.append((sample - (noise - clean) * decay(gamma)).square().mean())
    torch.stack(losses).mean().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(("energy", "accumulation"), [("implicit", 1), ("implicit", 4), ("dot", 2)])
def test_a_step_is_the_mean_over_its_samples(tmp_path, energy, accumulation) -> None:
    found, expected = joint_gradient(tmp_path, energy, accumulation=accumulation), written_out(energy)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_temporal_weights_have_the_gradient_of_the_clips_alone(tmp_path) -> None:
    joint = joint_gradient(tmp_path / "joint")
    clips = joint_gradient(tmp_path / "clips", images=0, batch_size=4)
    temporal = [name for name in joint if ".temporal" in name]
    assert len(temporal) == 12
    for name in temporal:  # half of the samples, each of which counts half as much
        assert torch.equal(2 * joint[name], clips[name]) and clips[name].any(), name
    assert not torch.allclose(2 * joint["head.linear.weight"], clips["head.linear.weight"])


def test_training_on_all_of_it_is_repeatable_and_goes_on_exactly(tmp_path) -> None:
    def make(folder, **more):
        sets = [MemoryClips(frames=frames) for frames in (2, 5)]
        options = {
            "gamma": MixtureGamma(),
            "images": 2,
            "batch_size": 6,
            "save_every": 3,
            "log_every": 4,
        }
        AcceleratorState._reset_state(reset_partial_state=True)
        return tiny_trainer(tmp_path / folder, tiny_network(), clips=sets, steps=8, **options, **more)

    def interrupted(batch, generators):
        if broken.step == 2:  # in the middle of step 3, which is between two lines of the log
            signal.raise_signal(signal.SIGTERM)
        return encode(batch, generators)

    whole = make("whole")
    whole.run()
    broken = make("broken", encode=interrupted)
    assert broken.run() is False and broken.checkpoints.newest().name == "step_00000003"
    resumed = make("broken")
    resumed.resume(resumed.checkpoints.newest())
    resumed.run()
    assert equal(weights(whole.network), weights(resumed.network))
    keys = ("step", "loss", "grad_norm", "loss_by_gamma", "loss_by_mode")
    lines = [[[line[key] for key in keys] for line in read_metrics(tmp_path / name)] for name in ("whole", "broken")]
    assert lines[0] == lines[1] and [line[0] for line in lines[0]] == [4, 8]
    assert "image" in lines[0][-1][-1]


def test_the_names_of_a_bad_step_include_its_images(tmp_path) -> None:
    trainer = tiny_trainer(tmp_path, images=2, batch_size=6, encode=lambda batch, _: encode(batch, None) * torch.nan)
    plan = trainer.batches.plan
    pictures, clips = ([f"clip-{index}" for _, index, _ in plan.requests(0, number)] for number in range(2))
    with pytest.raises(UserError, match=f"left out: {', '.join(pictures + clips)}"):
        trainer.run()


# ------------------------------------------------------------------------------------------------------------ the log


class Alone:
    num_processes, is_main_process = 1, True


def filled(*passes: tuple[list[list[float]], list[list[float]], float]) -> Meter:
    meter = Meter(torch.device("cpu"))
    for losses, gamma, weight in passes:
        each = torch.tensor(losses)
        meter.add_loss(each.mean(), each, torch.tensor(gamma), weight)
    return meter


def test_losses_are_logged_by_kind_of_clip_and_passes_weigh_by_their_clips() -> None:
    clips = [[1.0, 3.0], [5.0, 7.0], [0.0, 4.0], [2.0, 2.0]]
    gammas = [[0.2, 0.2], [0.9, 0.1], [1.0, 0.5], [0.0, 0.0]]
    line = filled((clips, gammas, 1.0), ([[9.0], [3.0]], [[0.5], [0.5]], 0.5)).read(Alone())
    assert line["loss_by_mode"] == {"shared": 2.0, "context": 2.0, "per_frame": 6.0, "image": 6.0}
    assert line["loss"] == pytest.approx((2 + 6 + 2 + 2 + 9 + 3) / 6)  # the mean over samples
    assert line["loss_by_gamma"]["1.0"] == 0.0 and line["loss_by_gamma"]["0.5"] == pytest.approx((4 + 9 + 3) / 3)


def test_the_log_starts_afresh_after_a_line_and_old_checkpoints_start_the_kinds_at_zero() -> None:
    first, second = ([[4.0, 4.0]], [[0.3, 0.3]], 1.0), ([[6.0, 2.0]], [[1.0, 0.3]], 1.0)
    meter = filled(first)
    meter.read(Alone())
    assert meter.read(Alone()) == {"loss": None, "grad_norm": None, "loss_by_gamma": {}, "loss_by_mode": {}}
    state = filled(first).state()
    for old in (False, True):
        kept = {key: value for key, value in state.items() if key != "kinds"} if old else state
        resumed = Meter(torch.device("cpu"))
        resumed.load(kept, True)
        each = torch.tensor(second[0])
        resumed.add_loss(each.mean(), each, torch.tensor(second[1]))
        line, expected = resumed.read(Alone()), filled(first, second).read(Alone())
        if old:
            assert expected["loss_by_mode"].pop("shared") == 4.0  # before the kinds were counted
        assert line == expected


@pytest.mark.parametrize(
    ("gamma", "frames", "modes"),
    [
        (SharedGamma(), 3, {"shared"}),
        (ContextGamma(("ends",)), 3, {"context"}),
        (MixtureGamma(shared=0.0, context=0.0, per_frame=1.0), 3, {"per_frame"}),
        (MixtureGamma(), 1, {"image"}),
    ],
)
def test_a_run_logs_the_modes_that_it_draws(tmp_path, gamma, frames, modes) -> None:
    tiny_trainer(tmp_path, gamma=gamma, clips=MemoryClips(frames=frames), steps=2, batch_size=8).run()
    (line,) = read_metrics(tmp_path)
    assert set(line["loss_by_mode"]) == modes
    assert line["loss_by_mode"][min(modes)] == pytest.approx(line["loss"], rel=1e-6)

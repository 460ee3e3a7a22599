"""Adapters (LoRA): they alone are trained, they merge without a change, a run with them resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import latents, tiny_pipeline, tiny_transformer
from tiny_run import main, recipe

from eqm_video import EqMPipeline
from eqm_video.cli import main as command_line
from eqm_video.errors import UserError
from eqm_video.models import adapters
from eqm_video.training.config import load_config

peft = pytest.importorskip("peft", reason="adapters need PEFT: pip install eqm-video[lora]")


def adapted(scale: float = 0.3) -> torch.nn.Module:
    """A network with adapters that do something."""
    network = tiny_transformer()
    adapters.add_adapters(network, rank=2, alpha=4.0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=scale)
    return network


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


# The network --------------------------------------------------------------------------------------------------------


def test_new_adapters_change_nothing_and_depend_on_their_seed(clips: torch.Tensor) -> None:
    plain, network, again = (tiny_transformer() for _ in range(3))
    adapters.add_adapters(network, 2, 4.0, seed=5)
    adapters.add_adapters(again, 2, 4.0, seed=5)
    assert torch.allclose(network(clips).sample, plain(clips).sample, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert trained == [name for name, _ in network.named_parameters() if adapters.is_adapter(name)] and trained
    assert adapters.has_adapters(network) and not adapters.has_adapters(plain)


def test_merged_weights_equal_adapters_up_to_rounding(clips: torch.Tensor) -> None:
    network = adapted()
    plain = adapters.merged(network)
    with torch.no_grad():
        theirs, ours = network(clips).sample, plain(clips).sample
        before = tiny_transformer()(clips).sample
    assert (theirs - before).abs().max() > 0.1, "the adapters do something"
    assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()
    assert plain.state_dict().keys() == tiny_transformer().state_dict().keys() and adapters.has_adapters(network)
    weight, layer = "blocks.0.spatial.qkv.weight", network.blocks[0].spatial.qkv
    change = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # alpha / rank = 2
    assert torch.allclose(plain.state_dict()[weight], tiny_transformer().state_dict()[weight] + change, atol=1e-6)


def test_files_are_those_of_peft(clips: torch.Tensor, tmp_path: Path) -> None:
    network = adapted()
    adapters.save_adapters(network, tmp_path)
    second = tiny_transformer()
    adapters.load_adapters(second, tmp_path)
    with torch.no_grad():
        expected = network(clips).sample
        assert torch.equal(second(clips).sample, expected)
        theirs = peft.PeftModel.from_pretrained(tiny_transformer(), tmp_path)
        assert torch.allclose(theirs(clips).sample, expected, atol=1e-5)
    adapters.remove_adapters(second)
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), tiny_transformer().parameters(), strict=True))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    adapters.save_adapters(adapted(), tmp_path)
    deeper = tiny_transformer(depth=3)
    with pytest.raises(UserError, match=r"of another network: they differ at blocks\.2"):
        adapters.load_adapters(deeper, tmp_path)
    assert not adapters.has_adapters(deeper)
    with pytest.raises(UserError, match=r"has no adapter_config\.json: give a folder of adapters"):
        adapters.load_adapters(tiny_transformer(), tmp_path / "nowhere")
    with pytest.raises(UserError, match="no linear layer 'to_q'; its layers are fc1"):
        adapters.add_adapters(tiny_transformer(), 2, 2.0, ["to_q"])
    config, weights = json.loads((tmp_path / "adapter_config.json").read_text()), tmp_path / "adapter_model.safetensors"
    for change, said in (({"peft_type": "IA3"}, "no LoRA adapters"), ({"use_dora": True}, "use_dora=True")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=said):
            adapters.load_adapters(tiny_transformer(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        adapters.load_adapters(tiny_transformer(), tmp_path)


def test_without_peft_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "peft>=0\.17"'):
        adapters.add_adapters(tiny_transformer(), 2, 2.0)


# The pipeline -------------------------------------------------------------------------------------------------------


def test_a_pipeline_takes_adapters_on_and_off(tmp_path: Path) -> None:
    adapters.save_adapters(adapted(0.05), tmp_path / "adapters")
    pipe, call = tiny_pipeline(), {"labels": ["up"], "seeds": [0]}
    before = latents(pipe, **call)
    pipe.load_lora_weights(tmp_path / "adapters")
    with_them = latents(pipe, **call)
    assert (with_them - before).abs().max() > 1e-3
    with pytest.raises(UserError, match="has adapters already"):
        pipe.load_lora_weights(tmp_path / "adapters")
    with pytest.raises(UserError, match="call fuse_lora"):
        pipe.save_pretrained(tmp_path / "export")
    pipe.unload_lora_weights()
    assert torch.allclose(latents(pipe, **call), before, atol=1e-5)
    pipe.load_lora_weights(tmp_path / "adapters", scale=0.0001)
    assert (latents(pipe, **call) - before).abs().max() < (with_them - before).abs().max() / 10
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "adapters")
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "export")
    loaded = EqMPipeline.from_pretrained(tmp_path / "export")
    loaded.set_progress_bar_config(disable=True)
    assert torch.allclose(latents(loaded, **call), with_them, atol=1e-4)


# Training -----------------------------------------------------------------------------------------------------------


def test_recipes_say_what_adapters_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_config(None, ["lora.rank=4", "train.init_from=x"]).lora.rank == 4
    for words, said in (
        (["lora.rank=4", "train.init_from=x", "train.compile=true"], "train.compile=false"),
        (["lora.rank=4", "train.init_from=x", "lora.targets="], "name linear layers, such as lora.targets=qkv"),
        (["lora.rank=0"], "lora.rank is 0"),
    ):
        with pytest.raises(UserError, match=said):
            load_config(None, words)
    assert main(["--config", "lora", "data.root=x"]) == 2 and "add train.init_from=MODEL" in capsys.readouterr().err
    assert main(["--config", "lora", "--dry-run"]) == 0


@pytest.fixture(scope="module")
def runs(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network, a run of adapters on it, and the same run in two parts."""
    folder = tmp_path_factory.mktemp("runs")
    assert main([*recipe(made, folder / "base"), "preview.every=0", "train.lr=0.01"]) == 0
    words = [*recipe(made, folder / "run"), f"train.init_from={folder / 'base'}", "lora.rank=2", "lora.alpha=4"]
    words += ["train.lr=0.05", "train.ema=0.5"]
    assert main(words) == 0
    parts = [*words, f"run.dir={folder / 'parts'}"]
    assert main([*parts, "train.steps=2"]) == 0
    assert main([*parts, "--resume"]) == 0
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_run_trains_adapters_alone(runs: Path, made: Path) -> None:
    base, export = weights_of(runs / "base" / "export"), weights_of(runs / "run" / "export")
    assert base.keys() == export.keys()
    changed = {name for name in base if not torch.equal(base[name], export[name])}
    assert changed and all(name.split(".")[-2] in adapters.TARGETS and name.endswith("weight") for name in changed)
    trained = load_file(runs / "run" / "checkpoints" / "step_00000004" / "model.safetensors")
    frozen = {name.replace(".base_layer.", "."): value for name, value in trained.items() if ".lora_" not in name}
    assert frozen.keys() == base.keys() and all(torch.equal(frozen[name], base[name]) for name in base), "bit for bit"
    pipe, merged = (EqMPipeline.from_pretrained(runs / name / "export") for name in ("base", "run"))
    for each in (pipe, merged):
        each.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(runs / "run" / "export" / "adapters")
    call = {"labels": ["left"], "seeds": [0]}
    assert torch.allclose(latents(pipe, **call), latents(merged, **call), atol=1e-4)
    assert len(list((runs / "run" / "previews").iterdir())) == 1
    average = load_file(runs / "run" / "checkpoints" / "step_00000004" / "ema" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(average[name], export[name]) for name in export), "a checkpoint samples as the export does"


@pytest.mark.usefixtures("fresh_accelerator")
def test_merge_writes_an_export_that_samples_as_the_adapters_do(runs: Path, tmp_path: Path) -> None:
    base, folder, call = runs / "base", runs / "run" / "export" / "adapters", {"labels": ["left"], "seeds": [0]}
    for scale, more in ((1.0, []), (0.5, ["--strength", "0.5"])):
        out = tmp_path / f"merged at {scale}"
        assert command_line(["merge", str(base), str(folder), "--out", str(out), *more]) == 0
        pipe, merged = (EqMPipeline.from_pretrained(path) for path in (base / "export", out))
        for each in (pipe, merged):
            each.set_progress_bar_config(disable=True)
        plain = latents(pipe, **call)
        pipe.load_lora_weights(folder, scale=scale)
        assert torch.allclose(latents(merged, **call), latents(pipe, **call), atol=1e-4)
        assert (latents(merged, **call) - plain).abs().max() > 1e-3
        card = (out / "README.md").read_text()
        assert f"weights of `base` with the adapters in `run` merged into them at strength {scale:g}" in card
        assert str(runs) not in card and not (out / "adapters").exists()
    card = (runs / "run" / "export" / "README.md").read_text()  # data of the base are not those of the adapters
    assert "began with the weights of `base`, which stayed as they are: adapters of rank " in card
    assert "began with the weights" not in (base / "export" / "README.md").read_text()
    assert weights_of(tmp_path / "merged at 1.0").keys() == weights_of(base / "export").keys()


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_run_resumes_exactly(runs: Path) -> None:
    for place in (
        "export/transformer/diffusion_pytorch_model.safetensors",
        "export/adapters/adapter_model.safetensors",
    ):
        first, second = load_file(runs / "run" / place), load_file(runs / "parts" / place)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("fresh_accelerator")
def test_new_labels_and_other_ranks_are_refused(runs: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*recipe(made, runs / "other", "images"), "frames=1", f"train.init_from={runs / 'base'}", "lora.rank=2"]
    assert main(words) == 2
    assert "lora.rank trains adapters alone, but" in capsys.readouterr().err
    assert main([f"run.dir={runs / 'parts'}", "lora.rank=3", "--resume"]) == 2
    assert "lora.rank" in capsys.readouterr().err
    assert main([*words, "data.labelled=false", "--dry-run"]) == 0


def test_damaged_adapters_of_a_checkpoint_are_noticed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = runs / "parts" / "checkpoints" / "step_00000004"
    weights = load_file(newest / "adapters" / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, newest / "adapters" / "adapter_model.safetensors")
    assert main([f"run.dir={runs / 'parts'}", "train.steps=6", "--resume"]) == 2
    assert "adapters/adapter_model.safetensors" in capsys.readouterr().err

"""The order of layers: a module imports only what lies below it, and each layer has its own libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "eqm_video"

# Each line is (layer, module prefix). Inside a layer a module may import only modules of earlier lines.
ORDER = [
    (0, "errors"),
    (0, "names"),
    (0, "machine"),
    (0, "wording"),
    (0, "files"),
    (0, "claims"),
    (0, "devices"),
    (0, "patience"),
    (0, "limits"),
    (0, "reading"),
    (0, "options"),
    (0, "randomness"),
    (0, "gamma"),
    (0, "objective"),
    (0, "energy"),
    (0, "guidance"),
    (0, "composition"),
    (0, "oracle"),
    (0, "metrics.frechet"),
    (0, "metrics.nearest"),
    (0, "metrics.ood"),
    (0, "metrics"),
    (0, "samplers.checks"),
    (0, "samplers.schedules"),
    (0, "samplers.rules"),
    (0, "samplers.frames"),
    (0, "samplers.moving"),
    (0, "samplers.descent"),
    (0, "samplers.ode"),
    (0, "samplers.sde"),
    (0, "samplers.presets"),
    (0, "samplers"),
    (0, "curvature"),
    (0, "readout"),
    (1, "models.bounds"),
    (1, "models.inputs"),
    (1, "models.layers"),
    (1, "models.transformer"),
    (1, "models.unet"),
    (1, "models.presets"),
    (1, "models.pixels"),
    (1, "models.reference_files"),
    (1, "models.convert"),
    (1, "models"),
    (2, "codec"),
    (2, "grids"),
    (2, "media"),
    (2, "overlays"),
    (2, "data.containers"),
    (2, "data.colour"),
    (2, "data.packets"),
    (2, "data.video"),
    (2, "data.image"),
    (2, "data.transforms"),
    (2, "data.entries"),
    (2, "data.layout"),
    (2, "data.looks"),
    (2, "data.children"),
    (2, "data.index"),
    (2, "data.holding"),
    (2, "data.presence"),
    (2, "data.identity"),
    (2, "data.unpickle"),
    (2, "data.cifar"),
    (2, "data.buckets"),
    (2, "data.clips"),
    (2, "data.datasets"),
    (2, "data.shapes"),
    (2, "data.stills"),
    (2, "data.latents"),
    (2, "data"),
    (3, "training.record"),
    (3, "folders"),
    (3, "settings"),
    (3, "requests"),
    (3, "sampling.settings"),
    (3, "sampling.option_groups"),
    (3, "sampling"),
    (3, "landscape"),
    (3, "starts"),
    (3, "pictures"),
    (3, "pipeline"),
    (3, "rollout"),
    (3, "loading"),
    (3, "training.signals"),
    (3, "training.reader"),
    (3, "training.shared_memory"),
    (3, "training.batches"),
    (3, "training.ema"),
    (3, "training.optim"),
    (3, "training.checkpoint"),
    (3, "training.rescue"),
    (3, "training.saving"),
    (3, "training.heartbeat"),
    (3, "training.trackers"),
    (3, "training.tracking"),
    (3, "training.progress"),
    (3, "training.held_out"),
    (3, "training.gather"),
    (3, "training.trainer"),
    (3, "training"),
    (3, "plane"),
    (4, "plain_yaml"),
    (4, "recipe"),
    (4, "config"),
    (4, "launch"),
    (4, "build"),
    (4, "resume"),
    (4, "training_data"),
    (4, "run"),
    (4, "cli"),
    (4, "studies.study"),
    (4, "studies.adaptive"),
    (4, "studies.ood.report"),
    (4, "studies.ood.sets"),
    (4, "studies.ood.study"),
    (4, "studies.ood"),
    (4, "studies.oracle.pictures"),
    (4, "studies.oracle.runs"),
    (4, "studies.oracle.study"),
    (4, "studies.oracle"),
    (4, "studies.sweep.plot"),
    (4, "studies.sweep.study"),
    (4, "studies.sweep"),
    (4, "studies"),
    (4, "__main__"),
    (4, ""),  # the package itself: lazy exports only
]
MATHEMATICS = {"torch", "einops"}
LIBRARIES = {
    0: MATHEMATICS | {"torchdiffeq"},
    1: MATHEMATICS | {"diffusers", "safetensors"},
    2: MATHEMATICS | {"numpy", "diffusers", "safetensors", "huggingface_hub", "av", "decord", "PIL", "imageio", "tqdm"},
    3: MATHEMATICS | {"numpy", "diffusers", "safetensors", "huggingface_hub", "accelerate", "tqdm", "PIL", "wandb"},
}
LIBRARIES[4] = LIBRARIES[2] | LIBRARIES[3] | {"yaml", "matplotlib"}


def modules() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def place(module: str) -> tuple[int, int]:
    """(layer, line in ORDER) of a module; the longest matching prefix decides."""
    best = None
    for line, (layer, prefix) in enumerate(ORDER):
        matches = module == prefix or (prefix and module.startswith(prefix + "."))
        if matches and (best is None or len(prefix) > len(ORDER[best[1]][1])):
            best = (layer, line)
    assert best is not None, f"eqm_video.{module} has no place in the order of layers: add it to ORDER"
    return best


def imported(module: str) -> list[tuple[str, int]]:
    """Every (dotted name, line) that a module imports anywhere, `if TYPE_CHECKING` blocks included."""
    path = PACKAGE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"eqm_video.{module}:{node.lineno} imports relatively; write the full name"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                file = ROOT.joinpath(*name.split("."))
                exists = file.with_suffix(".py").exists() or file.is_dir()
                found.append((name if node.module.startswith("eqm_video") and exists else node.module, node.lineno))
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    layer, line = place(module)
    for name, number in imported(module):
        where = f"eqm_video/{module.replace('.', '/')}:{number} imports {name}"
        if name.split(".")[0] == "eqm_video":
            other_layer, other_line = place(name.removeprefix("eqm_video").lstrip("."))
            assert other_layer < layer or (other_layer == layer and other_line <= line), f"{where}, which is not below"
        elif name.split(".")[0] not in sys.stdlib_module_names:
            assert name.split(".")[0] in LIBRARIES[layer], f"{where}: not a library of layer {layer}"


def test_importing_the_package_is_free() -> None:
    heavy = ["torch", "diffusers", "decord", "av", "wandb", "accelerate", "imageio", "matplotlib", "tensorboard"]
    code = f"import sys, eqm_video; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_network_and_pipeline_load_no_decoder_and_no_tracker() -> None:
    heavy = ["decord", "av", "wandb", "matplotlib", "tensorboard", "torchvision"]
    code = (
        "import sys, eqm_video; eqm_video.EqMPipeline, eqm_video.EqMTransformer, eqm_video.build_model;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_no_latent_scale_is_written_by_hand() -> None:
    offenders = [path.name for path in PACKAGE.rglob("*.py") if "0.18215" in path.read_text(encoding="utf8")]
    assert not offenders, f"latent scales come from the codec's config: {offenders}"

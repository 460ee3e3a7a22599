"""The tables for users of other code: every flag of theirs is there, and every key and option of ours exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eqm_video import options
from eqm_video.commands import explain
from eqm_video.sampling.options import SampleOptions

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
KEYS = {key.path for key in explain.every_key()}
FLAGS = {entry.flag for entry in options.declared(SampleOptions).values()}
OFFICIAL = """--data-path --results-dir --model --image-size --num-classes --epochs --global-batch-size --global-seed
--vae
--num-workers --log-every --ckpt-every --cfg-scale --wandb --ckpt --disp --uncond --ebm --path-type --prediction
--loss-weight --train-eps --sample-eps"""
SAMPLING = """--ckpt --model --num-classes --image-size --vae --uncond --ebm --folder --num-fid-samples
--global-batch-size
--global-seed --sampler --stepsize --num-sampling-steps --mu --cfg-scale"""
FORK = """--video --num-frames --random-frames --min-frames --single-frame-prob --max-steps --sample-every
--num-sample-steps --sample-stepsize --sample-mu --sample-method --sample-video-duration --compute-fid
--fid-num-samples --lr --lr-schedule --min-lr-factor --weight-decay --use-amp --use-bf16 --use-rope --use-muon
--muon-lr --muon-patch-embed --use-compile --gradient-accumulation-steps --grad-clip --use-curriculum
--use-clip-sampling --clip-full-prob --clip-center-prob --center-bias-fraction --clips-per-video"""
FORK_SAMPLING = "--video --use-rope --num-frames --video-duration --target-fps --decode-batch-size --use-amp --use-bf16"
LATTE = """dataset data_path pretrained_model_path results_dir pretrained model num_frames image_size num_sampling_steps
frame_interval fixed_spatial attention_bias learn_sigma extras save_ceph learning_rate ckpt_every clip_max_norm
start_clip_iter local_batch_size max_train_steps global_seed num_workers log_every lr_warmup_steps
resume_from_checkpoint gradient_accumulation_steps num_classes use_compile mixed_precision
enable_xformers_memory_efficient_attention gradient_checkpointing use_image_num ckpt save_img_path use_fp16 seed
sample_method cfg_scale run_time num_sample sample_names negative_name per_proc_batch_size num_fvd_samples"""
THEIRS = [  # heading, number of the table below it, flags
    ("The reference EqM code", 0, OFFICIAL),
    ("The reference EqM code", 1, SAMPLING),
    ("The video fork", 0, FORK),
    ("The video fork", 1, FORK_SAMPLING),
    ("Latte", 0, LATTE),
]


def rows(heading: str, number: int) -> list[list[str]]:
    """The cells of a table, without its header."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = re.findall(r"(?:^\|.*\n)+", part, flags=re.MULTILINE)[number]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize(("heading", "number", "flags"), THEIRS)
def test_every_flag_has_a_row(heading: str, number: int, flags: str) -> None:
    named = [flag for row in rows(heading, number) for flag in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(named) == sorted(flags.split())


def test_keys_and_options_exist() -> None:
    ours = [
        line.split(" | ")[1].strip() for line in PAGE.splitlines() if line.startswith("| ") and " | here" not in line
    ]
    assert len(ours) > 80
    for cell in ours:
        name = cell.strip("`")
        assert cell == "-" or name in KEYS or name in FLAGS or name == "MODEL", f"{cell} is no key and no option"


def test_keys_in_notes_exist() -> None:
    sections = {path.partition(".")[0] for path in KEYS}
    named = {word for word in re.findall(r"`([a-z_]+\.[a-z_.]+)", PAGE) if word.partition(".")[0] in sections} - {
        "train.py"
    }
    assert named and not {word for word in named if word.rstrip(".") not in KEYS}

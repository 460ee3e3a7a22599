"""Launchers' settings that would train another run than the recipe says are refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from eqm_video.cli import main
from eqm_video.errors import UserError
from eqm_video.training import build
from eqm_video.training.config import load_config
from eqm_video.training.launcher import check_environment, check_launch, note_precision, read_sharding

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.accumulation=N"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "train.compile=true"),
        ("ACCELERATE_USE_DEEPSPEED", "True", "FSDP2 alone"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "FSDP2 alone"),
    ],
)
def test_a_setting_that_changes_the_run_is_refused_by_name(monkeypatch, name, value, advice) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value} is set.*{advice}"):
        build.make_accelerator(load_config(None, []))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_USE_FSDP", "false"),
        ("ACCELERATE_USE_DEEPSPEED", "0"),
    ],
)
def test_what_launchers_set_anyway_is_harmless(monkeypatch, name, value) -> None:
    monkeypatch.setenv(name, value)
    check_environment()


def test_compilation_without_a_compiler_is_a_sentence(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs a C compiler.*train\.compile=false"):
        build.check_compiler()
    (tmp_path / "my-cc").write_text("#!/bin/sh\n")
    (tmp_path / "my-cc").chmod(0o755)
    monkeypatch.setenv("CC", "my-cc")
    build.check_compiler()


def test_gradients_are_whole_whatever_accelerate_reads(monkeypatch) -> None:
    monkeypatch.setattr("eqm_video.training.launcher.check_environment", lambda: None)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert build.make_accelerator(load_config(None, [])).gradient_accumulation_steps == 1


def test_the_recipe_decides_the_precision_and_a_launcher_that_asks_for_another_is_noted(monkeypatch) -> None:
    config = load_config(None, ["train.mixed_precision=bf16"])
    for asked, count in (("no", 0), ("bf16", 0), ("fp16", 1), ("fp8", 1)):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        assert len(note_precision(config)) == count
    assert build.make_accelerator(config).mixed_precision == "bf16"


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM", "XLA"])
def test_other_training_in_parts_than_fsdp_is_refused_in_a_sentence(kind) -> None:
    with pytest.raises(UserError, match=r"FSDP2 alone.*--multi_gpu"):
        check_launch(SimpleNamespace(distributed_type=DistributedType[kind], num_processes=2))


def test_parallelism_without_fsdp_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(UserError, match="without FSDP"):
        read_sharding()
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "false")
    assert read_sharding() is None


def test_an_error_stands_at_the_end_of_torchruns_report(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["trian"]) == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert "error: unknown command 'trian'; did you mean train?" in str(ChildFailedError("train", {0: failure}))
    said = capsys.readouterr().err
    assert "accelerate" not in said and said.endswith(
        "(the launcher's report follows; the error above stands at its end)\n"
    )
    monkeypatch.setenv("RANK", "1")
    assert main(["trian"]) == 2
    assert "report follows" not in capsys.readouterr().err, "once is enough"


def test_the_traceback_of_accelerate_launch_is_announced(monkeypatch, capsys) -> None:
    assert main(["trian"]) == 2
    assert "traceback" not in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert main(["trian"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: unknown command") and "the traceback below is accelerate's own" in said[1]

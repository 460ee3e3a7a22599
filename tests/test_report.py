"""The report of runs: a single file that names what the run's files say, and is harmless whatever they hold."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import main, recipe

from eqm_video.cli import main as command
from eqm_video.commands import push
from eqm_video.errors import UserError
from eqm_video.output import html, plots
from eqm_video.output.html import Section, Table
from eqm_video.studies.report import RunReport, stops
from eqm_video.training.card import own_files, write_card
from eqm_video.training.report import RunFiles, distinct, duration, page, read_log, spread

WEIGHTS = "diffusion_pytorch_model"


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Path:
    """A finished tiny run with previews and held-out clips."""
    folder = tmp_path_factory.mktemp("reported") / "run"
    words = ["train.steps=4", "train.log_every=1", "preview.every=2", "preview.samples=2"]
    words += ["held_out.fraction=0.5", "held_out.every=2", "held_out.clips=2", "run.report=true"]
    assert main([*recipe(made, folder), *words]) == 0
    return folder


def needs_nothing(text: str) -> None:
    """Every source, link and style of a page lies within it."""
    for tag, attributes in Elements(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "form"), tag
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/")), f"{tag} {name}={value[:60]}"
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_training_ends_with_a_report(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    needs_nothing(text)
    said = " ".join(Elements(text).words)
    lines = read_log(run / "metrics.jsonl")
    assert f"{lines[-1]['loss']:.4g}" in said and f"{lines[-1]['held_out']['mean']:.4g}" in said
    assert all(f"step {step}" in said for step in (2, 4)) and text.count("data:image/gif") == 2
    assert "train.steps" in said and torch.__version__ in said and "processor" in said
    assert text.count("<svg") == 4 and "Evaluation" not in said and "run.dir" not in said.replace("run.dir=NEW", "")


def test_the_command_adds_descents_and_results(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = run / "ood_first"
    study.mkdir()
    record = {"origin": "written by eqm-video", "command": "eqm-video ood <b>", "auroc": 0.75, "settings": {"n": 3}}
    (study / "ood.json").write_text(json.dumps(record))
    plots.save(plots.figure(1, 1), study / "ood.png")
    assert command(["report", str(run), "--descents", "2"]) == 0
    assert "Descents" in capsys.readouterr().out
    text = (run / "report.html").read_text(encoding="utf-8")
    needs_nothing(text)
    assert "eqm-video ood &lt;b&gt;" in text and "0.75" in text and "data:image/png" in text
    numbers = json.loads((run / "report.json").read_text())
    (descent,) = numbers["descents"]
    assert len(descent["gradient_rms"]["mean"]) == descent["nfe"] and numbers["runs"] == [str(run.resolve())]
    assert "gamma" not in descent, "a page without gammas does not pay for them"


def test_several_runs_share_a_page(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    changed = (run / "config.yaml").read_text().replace("seed: 0", "seed: 7", 1)
    (other / "config.yaml").write_text(changed)
    (other / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    out = tmp_path / "both"
    assert command(["report", str(run), str(other), "--descents", "0", "--out", str(out)]) == 0
    text = (out / "report.html").read_text(encoding="utf-8")
    needs_nothing(text)
    tables = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", tables[0]) == ["train.seed", "0", "7"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "is no training run, since it has no config.yaml"),
        ({"config.yaml": "train: {steps: 3}"}, "has no line yet: wait for the first step"),
        ({"config.yaml": "train: {steps: 3}", "metrics.jsonl": "{cut"}, "has no line yet"),
    ],
)
def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path, files: dict, sentence: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("mine")  # the run is wrong, and not --out
    with pytest.raises(UserError, match=sentence) as caught:
        RunReport.main([str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_a_damaged_log_gives_its_whole_lines(tmp_path: Path) -> None:
    line = {"loss": 2.0, "loss_by_gamma": {"0.1": None, "0.3": 1.0, "1.0": 0.0}, "seconds": None}
    rows = [{"step": 2, **line}, {"step": 1, **line}, {"step": 2, **line, "loss": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "lo')
    (tmp_path / "config.yaml").write_text("train: {steps: 3}")
    read = RunFiles.read(tmp_path)
    assert read.curve("loss") == ([1, 2], [2.0, 3.0]) and read.curve("held_out/mean") == ([], [])
    assert "<svg" in page([read]).render()


def test_damaged_files_of_a_run_make_no_traceback(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": "x", "loss_by_gamma": [1], "evaluate": 3, "seconds": NaN, "clips_per_second": NaN}',
        '{"step": 2, "loss": NaN, "loss_by_gamma": {"a": "b", "0.1": -3}, "evaluate": {"mmd": 3}, "seconds": 1e400}',
        '{"step": true, "loss": 2}',
        '{"step": 3, "loss": 2.5}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "config.yaml").write_text("train: {steps: 3}")
    for name, content in (("step_x.gif", b"GIF8"), ("step_1.gif", b""), ("step_2.png", b"half")):
        (tmp_path / "previews").mkdir(exist_ok=True)
        (tmp_path / "previews" / name).write_bytes(content)
    (tmp_path / "previews/step_3.gif").mkdir()
    record = tmp_path / "checkpoints/step_00000003/checkpoint.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"data": 3, "machine": [1], "versions": "x"}')
    read = RunFiles.read(tmp_path)
    text = page([read]).render()
    assert read.previews == [] and read.curve("loss") == ([3], [2.5]) and "2.5" in text and "no checkpoint yet" in text


def test_runs_of_one_page_have_names_that_differ(run: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/_x", "b/_x", f"{'long' * 30}1", f"{'long' * 30}2", "$y$<b>")]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl"):
            shutil.copyfile(run / name, folder / name)
    runs = distinct([RunFiles.read(folder) for folder in folders])
    names = [each.name for each in runs]
    assert names[:2] == ["a/_x", "b/_x"] and names[4] == "$y$<b>"
    assert len(set(names)) == 5 and max(map(len, names)) <= 44
    text = page(runs).render()
    needs_nothing(text)
    assert text.count("$y$&lt;b&gt;</text>") == text.count("a/_x</text>") > 2, "in every legend, and no mathematics"
    assert [tag for tag, attributes in Elements(text).tags if tag == "svg" and not attributes["aria-label"]] == []
    with pytest.raises(UserError, match="a run is given twice"):
        RunReport.main([str(folders[0]), str(folders[0])])


def test_names_cannot_write_the_page() -> None:
    bad = '<script>alert("&")</script>'
    section = Section(bad, [bad], bad, [Table([bad], [[bad]])], folded=[(bad, bad)])
    figure = plots.figure(2, 2)
    plots.axes(figure, title=bad, xlabel=bad)
    made = html.Page(bad, bad, [(bad, bad)], [section, Section("figure", pictures=[html.drawn(figure, bad)])])
    assert "<script" not in made.render() and "&lt;script&gt;" in made.render()


def test_tables_of_markdown() -> None:
    first, second = Table.of_markdown("a\n| x | **y** |\n|---|--:|\n| b | 1.5 |\n\n| z |\n|---|\n| 3 % |\n")
    assert (first.head, first.body) == (["x", "y"], [["b", "1.5"]])
    assert [cell.number for cell in first.rows[0]] == [False, True] and second.rows[0][0].number


def test_figures_have_ids_of_their_own() -> None:
    drawn = []
    for label in "ab":
        figure = plots.figure(2, 2)
        plots.axes(figure, xlabel=label).plot([0, 1], color="#000000")
        drawn.append(plots.svg(figure))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in drawn]
    assert not ids[0] & ids[1] and "currentColor" in drawn[0] and "#000000" not in drawn[0]
    for text, own in zip(drawn, ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", text)) <= own


def test_clips_stop_at_the_first_small_gradient() -> None:
    rms = torch.tensor([[[4.0, 4.0], [4.0, 4.0]], [[1.0, 3.0], [1.0, 1.0]], [[1.0, 3.0], [9.0, 9.0]]])
    assert stops(rms, 2.0) == [2] and stops(rms, 5.0) == [1, 1] and stops(rms, 0.5) == []


def test_words_and_choices() -> None:
    assert [duration(value) for value in (5, 600, 7500)] == ["5 s", "10 min", "2 h 5 min"]
    items = [Path(str(k)) for k in range(10)]
    assert [path.name for path in spread(items, 4)] == ["0", "3", "6", "9"] and spread(items[:2], 4) == items[:2]
    assert [path.name for path in spread(items, 1)] == ["9"]


# Cards and sharing ----------------------------------------------------------------------------------------------------


def test_an_export_has_a_card(run: Path) -> None:
    text = (run / "export" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "eqm-video" and "equilibrium-matching" in head["tags"]
    lines = read_log(run / "metrics.jsonl")
    assert f"{lines[-1]['loss']:.4g}" in text and f"{lines[-1]['held_out']['mean']:.4g}" in text
    for part in ("## Use", "## Data", "## Training", "## Measured", "## Licence", "## Limits"):
        assert part in text
    assert "](samples.gif)" in text and (run / "export/samples.gif").read_bytes()[:4] == b"GIF8"
    assert str(run.parent) not in text and "data.root" not in text, "paths of the machine stay out of a card"


def test_a_users_card_is_kept(run: Path, tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir()
    old.mkdir()
    write_card(new, RunFiles.read(run), old)
    assert own_files(new) == ["README.md", "samples.gif"]
    shutil.copyfile(new / "samples.gif", old / "samples.gif")
    (old / "README.md").write_text("mine")
    assert own_files(old) == []
    again = tmp_path / "again"
    again.mkdir()
    write_card(again, RunFiles.read(run), old)
    assert list(again.iterdir()) == []


def test_only_files_of_the_model_are_shared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = tmp_path / "export"
    shutil.copytree(run / "export", export)
    for name in ("notes.txt", "weights.pt", "transformer/notes.md", "token.json"):
        (export / name).write_text("mine")
    names = {path.relative_to(export).as_posix() for path in push.shared_files(export)}
    weights = {
        f"{part}/{name}" for part in ("transformer", "vae") for name in ("config.json", f"{WEIGHTS}.safetensors")
    }
    assert names == {"model_index.json", "README.md", "samples.gif", *weights}
    assert command(["push", str(run), "me/shapes", "--dry-run"]) == 0
    assert "7 files" in capsys.readouterr().out
    (export / "README.md").unlink()
    for words, sentence in (
        ([str(export), "me/shapes"], "has no card: write README.md there"),
        ([str(run), "shapes"], "names no owner: give OWNER/NAME"),
        ([str(run), "me/two words"], "is no name of a repository"),
    ):
        assert command(["push", *words, "--dry-run"]) == 2
        assert sentence in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_a_sentence(run: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    assert command(["push", str(run), "me/shapes"]) == 2
    assert "error: http://127.0.0.1:9 cannot be reached (" in capsys.readouterr().err

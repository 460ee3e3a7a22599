"""The page without the web: settings, uploads, files, jobs, pictures. Everything here runs without gradio."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video.cli import main
from eqm_video.errors import UserError
from eqm_video.output.media import write_mp4
from eqm_video.page import controls, drawing, uploads
from eqm_video.page.gate import MOST_MESSAGE, Gate, hosts_of, is_loopback
from eqm_video.page.launch import address, left_by_exception, listen
from eqm_video.page.served import MOST_SAMPLES, Chart, Curve, Made, Moment, Scored, Served, Wish
from eqm_video.page.shelf import Shelf
from eqm_video.sampling.settings import Sampling


@pytest.fixture(scope="module")
def served() -> Served:
    return Served(tiny_pipeline())


@pytest.fixture
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def write_video(path: Path, frames: int, size: tuple[int, int], fps: float) -> None:
    """A video of noise that differs from frame to frame."""
    write_mp4(path, np.random.default_rng(0).integers(0, 256, (frames, *size, 3), dtype=np.uint8), fps)


# Settings -----------------------------------------------------------------------------------------------------------


def test_the_settings_are_the_fields_of_sampling(served: Served) -> None:
    offered = controls.controls(served.pipeline)
    names = {control.name for control in offered}
    assert names | set(controls.ELSEWHERE) == {entry.name for entry in fields(Sampling)}
    rare = [control.entry.option.rare for control in offered]
    assert rare == sorted(rare), "those of --help come first"
    by_name = {control.name: control for control in offered}
    assert by_name["steps"].unset == "4, the model's" and "from 1 to 1000" in by_name["steps"].help
    assert by_name["sampler"].kind == "choice" and "nag, the model's" in by_name["sampler"].help
    assert by_name["match_norm"].kind == "switch" and by_name["warp"].kind == "text"
    empty = ["" if control.kind != "switch" else False for control in offered]
    assert controls.read_sampling(offered, empty) == Sampling()


def test_settings_are_read_and_refused_as_on_the_command_line(served: Served) -> None:
    offered = controls.controls(served.pipeline)
    empty = {control.name: "" if control.kind != "switch" else False for control in offered}
    typed = {"steps": "7", "step_size": "auto", "guidance_interval": "0, 0.5", "per_frame": True, "frame_schedule": "3"}
    how = controls.read_sampling(offered, list((empty | typed).values()))
    assert how == Sampling(steps=7, step_size="auto", guidance_interval=(0.0, 0.5), per_frame=True, frame_schedule=3)
    wrong = {"steps": "1001", "mu": "1", "sampler": "nagg", "guidance_interval": "0.5", "warp": "x"}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=f"^{name.replace('_', ' ')} is .*: it must be "):
            controls.read_sampling(offered, list((empty | {name: value}).values()))


@pytest.mark.parametrize("typed", ["-1", "1.5", "", "1e3", "²", "9" * 30, None, "5"])
def test_whole_numbers_have_bounds(typed: object) -> None:
    with pytest.raises(UserError, match=r"the length is .*: it must be a whole number from 1 to 4"):
        controls.read_whole(typed, "the length", 1, 4)
    assert controls.read_whole(4.0, "the length", 1, 4) == controls.read_whole(" 4 ", "the length", 1, 4) == 4


def test_terms_of_a_composition_are_labels_with_weights() -> None:
    known = {0: "up", 1: "down"}
    assert controls.read_terms(["up", "", "down"], ["1", "9", "-0.5"], known) == (("up", 1.0), ("down", -0.5))
    for labels, weights, said in (
        (["left"], ["1"], "not one of this model: up, down"),
        (["up"], ["much"], "must be a number"),
        (["up"], ["nan"], "from -100 to 100"),
        ([""], ["1"], "at least one label"),
    ):
        with pytest.raises(UserError, match=said):
            controls.read_terms(labels, weights, known)


# Files --------------------------------------------------------------------------------------------------------------


def test_the_shelf_keeps_files_within_its_limits() -> None:
    with Shelf(most_files=2, most_bytes=100) as shelf:
        tokens = []
        for number in range(3):
            path = shelf.new(".gif")
            path.write_bytes(bytes(10))
            tokens.append(shelf.keep(path, number))
        assert shelf.find(tokens[0]) is None and shelf.find(tokens[2]).about == 2
        large = shelf.new(".mp4")
        large.write_bytes(bytes(99))
        token = shelf.keep(large)
        assert shelf.find(tokens[2]) is None and shelf.find(token).path == large
        assert [path.name for path in shelf.folder.iterdir()] == [large.name]
        assert shelf.folder.stat().st_mode & 0o077 == 0, "nobody else may read it"
        for wrong in ("../../etc/passwd", "", None, token + "x", f"{token[:-1]}/"):
            assert shelf.find(wrong) is None
        shelf.seconds = 0.0
        time.sleep(0.01)
        assert shelf.find(token) is None and not large.exists()
    assert not shelf.folder.exists()


def test_a_killed_pages_folder_is_deleted_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = {name: tmp_path / f"eqm-page.{name}" for name in ("killed", "young", "link")} | {"no": tmp_path / "eqm-x"}
    for name in ("killed", "young", "no"):
        mine[name].mkdir()
        (mine[name] / "a.mp4").touch()
    mine["link"].symlink_to(mine["no"])
    with Shelf() as alive:
        for folder in (mine["killed"], mine["no"], alive.folder):
            os.utime(folder, (0, 0))
        with Shelf() as other:
            assert not mine["killed"].exists() and (mine["young"] / "a.mp4").exists() and alive.folder.exists()
            assert (mine["no"] / "a.mp4").exists() and other.folder.exists()
    assert not alive.folder.exists()


def test_uploads_are_cut_into_the_clips_of_a_model(tmp_path: Path) -> None:
    video, picture = tmp_path / "secret.mp4", tmp_path / "secret.png"
    write_video(video, frames=10, size=(24, 32), fps=20)
    Image.new("RGB", (40, 30), (200, 10, 10)).save(picture)
    moving, still = uploads.look(video, "my clip.mp4"), uploads.look(picture, "folder/me.png")
    assert moving.kind == "video" and moving.says == "my clip.mp4: 10 frames, 0.5 s at 20 fps"
    assert still.says == "me.png: a picture"
    film = [Image.new("RGB", (40, 30), (shade, 0, 0)) for shade in (0, 200)]
    film[0].save(tmp_path / "film.gif", save_all=True, append_images=film[1:])
    animated = uploads.look(tmp_path / "film.gif", "film.gif").says
    assert animated.startswith("film.gif: an animation, of which the first picture is read; for its motion choose a")
    first = uploads.cut_clip(moving, 3, (16, 16), 10.0)
    assert first.pixels.shape == (3, 16, 16, 3) and first.available == 3 and first.rate == 10
    short = uploads.cut_clip(moving, 8, (16, 16), 10.0, at=0.1)
    assert short.available == 4 and np.array_equal(short.pixels[3], short.pixels[7])
    last = uploads.cut_clip(still, 8, (16, 16), 10.0)
    assert last.available == 1 and last.rate is None and abs(last.pixels[5, 8, 8].astype(int) - [200, 10, 10]).max() < 3
    pixels, shown, rate = uploads.join(short, last)
    assert shown == [0, 1, 2, 3, 7] and np.array_equal(pixels[7], last.pixels[0]) and rate == 10
    assert uploads.join(None, last)[1] == [7] and uploads.join(last, None)[1] == [0]
    with pytest.raises(UserError, match=r"my clip\.mp4 has 0\.5 s: give a start"):
        uploads.cut_clip(moving, 3, (16, 16), 10.0, at=0.6)
    with pytest.raises(UserError, match="choose a video or a picture first"):
        uploads.join(None, None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.mp4", b"", "a.mp4: the file is empty"),
        ("a.mp4", b"no video at all", "a.mp4: "),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "a.mp4: "),
        ("../x/a.png", b"\x89PNG\r\n\x1a\n broken", "a.png: cannot be"),
        ("a.svg", b"<svg/>", "a.svg is no video or picture by its name"),
        ("a.npz", b"PK", "a.npz is no video or picture by its name"),
        ("", b"", "the file is no video or picture by its name"),
    ],
)
def test_bad_uploads_get_one_sentence_without_a_path(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / ("token" + (Path(name).suffix or ".mp4"))
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        uploads.look(path, name)
    text = str(refused.value)
    assert text.startswith(said) and str(tmp_path) not in text and "token" not in text and "\n" not in text
    assert text.endswith("choose another file") == (said.endswith(": ") or "cannot be" in said or "empty" in said)


def test_an_upload_with_the_name_of_the_other_kind_is_told_so(tmp_path: Path) -> None:
    Image.new("RGB", (24, 16), (255, 0, 0)).save(tmp_path / "token.png")
    (tmp_path / "token.png").rename(tmp_path / "token.mp4")
    with pytest.raises(UserError, match=r"^a\.mp4: cannot be read as a video .*; it is a picture: .* such as \.png$"):
        uploads.look(tmp_path / "token.mp4", "a.mp4")
    write_video(tmp_path / "token.mp4", frames=2, size=(24, 32), fps=8)
    (tmp_path / "token.mp4").rename(tmp_path / "token.png")
    with pytest.raises(UserError, match=r"^a\.png: cannot be read as an image .*; it is a video: .* such as \.mp4$"):
        uploads.look(tmp_path / "token.png", "a.png")


def test_frames_of_a_video_may_not_be_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", frames=2, size=(24, 32), fps=8)
    monkeypatch.setattr(uploads, "MOST_PIXELS", 700)
    with pytest.raises(UserError, match=r"a\.mp4 has frames of 32x24 pixels"):
        uploads.look(tmp_path / "a.mp4", "a.mp4")


# Jobs ---------------------------------------------------------------------------------------------------------------


def test_a_descent_is_watched_and_changes_nothing(served: Served) -> None:
    wish = Wish(("up", "up"), 5, Sampling(steps=6))
    *moments, made = served.sample(wish)
    assert isinstance(made, Made) and all(isinstance(moment, Moment) for moment in moments)
    plain = served.pipeline(labels=["up", "up"], seeds=[5, 6], steps=6, output_type="uint8")
    assert np.array_equal(made.clips, plain.frames) and made.fps == 10
    assert [moment.done for moment in moments] == sorted(moment.done for moment in moments) and moments[-1].done == 1
    assert np.array_equal(moments[-1].frames, made.clips) and moments[-1].gamma.shape == (2, 3)
    rms, gamma = made.charts
    assert [curve.name for curve in rms.curves] == ["frame 0", "frame 1", "frame 2"]
    assert len(rms.curves[0].y) == 6 and gamma.most == 1 and all(0 <= y <= 1 for y in gamma.curves[0].y)
    assert "6 evaluations" in made.says


def test_known_frames_stay_and_have_no_curve(served: Served, clip: np.ndarray) -> None:
    *_, made = served.sample(Wish(("up",), 1, Sampling(steps=3), clip=clip, known=(0, 2), rate=8.0))
    plain = served.pipeline(
        labels=["up"], seeds=[1], steps=3, clips=clip[None], known=[0, 2], fps=8.0, output_type="uint8"
    )
    assert np.array_equal(made.clips, plain.frames) and made.fps == 8 and made.known == (0, 2)
    assert [curve.name for curve in made.charts[0].curves] == ["frame 1"]


def test_compositions_and_frame_schedules_are_watched(served: Served) -> None:
    how = Sampling(steps=2, composition=(("up", 1.0), ("down", 0.5)))
    *_, made = served.sample(Wish((None,), 0, how))
    plain = served.pipeline(seeds=[0], steps=2, composition=[("up", 1.0), ("down", 0.5)], output_type="uint8")
    assert np.array_equal(made.clips, plain.frames)
    *moments, made = served.sample(Wish(("up",), 0, Sampling(steps=2, frame_schedule="autoregressive")))
    assert moments[-1].says == "step 6 of 6" and len(made.charts[0].curves[0].y) == 6


@pytest.mark.parametrize("network", [{"conditioned_on_gamma": True}, {}])
def test_models_without_a_readable_gamma_are_shown_too(network: dict) -> None:
    flow = Served(
        tiny_pipeline(tiny_transformer(**network), decay=None if not network else {"kind": "linear", "gain": 1.0})
    )
    *moments, made = flow.sample(Wish(("up",), 0, Sampling(sampler="euler", steps=3)))
    assert isinstance(made, Made) and (moments[-1].gamma is not None) == bool(network)


def test_a_long_video_grows_window_by_window(served: Served) -> None:
    *moments, made = served.sample(Wish(("up",), 0, Sampling(steps=2), length=8, overlap=1))
    assert made.clips.shape == (1, 8, 16, 16, 3) and "8 frames in 4 windows" in made.says
    shown = [moment.says for moment in moments if moment.frames is not None]
    assert shown == [f"window {k} of 4" for k in (1, 2, 3, 4)]
    assert [curve.name for curve in made.charts[0].curves] == ["new frames", "known frames"]


def test_scores_are_those_of_the_field(served: Served, clip: np.ndarray) -> None:
    (scored,) = served.score(clip, "up")
    field = served.pipeline.field(["up"], num_frames=3, guidance_scale=1.0)
    with torch.no_grad():
        rms = field(served.pipeline.encode(clip[None])).square().mean(dim=(2, 3, 4)).sqrt()[0]
    assert isinstance(scored, Scored) and scored.charts[0].curves[0].y == pytest.approx(rms.tolist(), rel=1e-4)
    assert [curve.name for curve in scored.charts[0].curves] == ["your clip", "flat grey"]
    assert "the largest jump is from frame" in scored.says


def test_impossible_wishes_are_refused(served: Served) -> None:
    for wish, said in (
        (Wish(("up",) * (MOST_SAMPLES + 1), 0), "the page makes 1 to 4"),
        (Wish(("up",), 0, length=3), "a long video has 4 to 512 frames"),
        (Wish(("sideways",), 0), "sideways"),
        (Wish(("up",), 0, Sampling(step_size="auto")), "curvature"),
    ):
        with pytest.raises(UserError, match=said):
            list(served.sample(wish))
    assert isinstance(list(served.sample(Wish(("up",), 0, Sampling(steps=1))))[-1], Made), "the model is free again"


def test_who_leaves_frees_the_model_and_ten_people_take_turns(served: Served) -> None:
    left = served.sample(Wish(("up",), 0, Sampling(steps=900)))
    next(left)
    left.close()
    ended: dict[int, np.ndarray] = {}
    most, running, lock = [0], [0], threading.Lock()
    whole = served.pipeline.decode

    def decode(*arguments: object) -> np.ndarray:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            return whole(*arguments)
        finally:
            with lock:
                running[0] -= 1

    def person(seed: int) -> None:
        ended[seed] = list(served.sample(Wish(("up",), seed, Sampling(steps=2))))[-1].clips

    served.pipeline.decode = decode
    try:
        people = [threading.Thread(target=person, args=(seed,)) for seed in range(10)]
        for each in people:
            each.start()
        for each in people:
            each.join(60)
    finally:
        del served.pipeline.decode
    alone = served.pipeline(labels=["up"] * 10, seeds=range(10), steps=2, output_type="uint8").frames
    assert most[0] == 1 and all(abs(ended[k][0].astype(int) - alone[k]).max() <= 1 for k in range(10))


# Pictures -----------------------------------------------------------------------------------------------------------


def test_pictures_escape_all_text(clip: np.ndarray) -> None:
    evil = '<script>alert("x")</script>'
    drawn = [
        drawing.refusal(evil),
        drawing.note(evil),
        drawing.progress(0.5, evil),
        drawing.film("files/a.gif", [("files/a.gif", f"{evil}.gif")], evil, 32),
        drawing.chart(Chart(evil, evil, [Curve([0, 1], [0, 1], evil)])),
    ]
    assert not any("<script" in text for text in drawn)


def test_the_brush_offers_the_frames_that_are_there(clip: np.ndarray) -> None:
    text = drawing.brush(clip, available=[0, 1], known=[0])
    assert text.count("<button") == 2 and text.count("eqm-empty") == 1
    assert text.count('aria-pressed="true"') == 1 and 'data-frame="0" aria-pressed="true"' in text


def test_charts_hold_any_numbers() -> None:
    for values in ([0.0], [1.0, 1.0], [-3.0, 2.0], [float("nan"), 1.0, float("inf")]):
        text = drawing.chart(Chart("a", "step", [Curve(list(map(float, range(len(values)))), values, "one")]))
        assert text.count("<polyline") == 1 and "nan" not in text and "inf" not in text
    assert drawing.chart(Chart("a", "step", [Curve([0.0], [float("nan")])])) == ""
    small = drawing.chart(Chart("a", "step", [Curve([0.0, 1.0], [0.0, 0.09581], "one")]))
    assert ">0.096</text>" in small, "there is room for five characters"
    many = Chart("a", "step", [Curve([0.0, 1.0], [0.0, float(k)]) for k in range(16)])
    assert "first frame" in drawing.chart(many) and drawing.chart(many).count("<polyline") == 16


def test_a_strip_has_every_frame(clip: np.ndarray) -> None:
    assert drawing.strip(clip[None]).count("<img") == 3
    assert drawing.strip(np.stack([clip, clip]), np.full((2, 3), 0.5)).count("<img") == 6


# The gate -----------------------------------------------------------------------------------------------------------


def ask(gate: Gate, method: str, path: str, **headers: str) -> int:
    """The status of an answer: 200 if the request reached the application."""

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    gate.app, sent = app, []

    async def send(message) -> None:
        sent.append(message)

    head = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "localhost:1", **headers}.items()
    ]
    scope = {"type": "http", "method": method, "path": path, "headers": head}
    asyncio.run(gate(scope, None, send))
    assert any(name == b"content-security-policy" for name, _ in sent[0]["headers"])
    return sent[0]["status"]


def test_the_gate_knows_the_addresses_of_the_page_only() -> None:
    gate = Gate(None, hosts_of("127.0.0.1"))
    token = "a" * 22
    for path in ("/", "/config", "/assets/index-a1.js", "/static/fonts/a.woff2", f"/files/{token}.gif"):
        assert ask(gate, "GET", path) == 200, path
    closed = ["/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/proxy=http://a.b", "/gradio_api/upload"]
    closed += [
        "/docs",
        "/openapi.json",
        "/gradio_api/dev/reload",
        "/gradio_api/file/x",
        "/assets/../../x",
        "/monitoring",
    ]
    closed += [
        f"/files/{token}.py",
        f"/files/{token}/x.gif",
        "/files/../x.gif",
        "/gradio_api/deep_link",
        "//",
        "/uploads",
    ]
    for path in closed:
        assert ask(gate, "GET", path) == 404, path
    for path in (
        "/gradio_api/upload",
        "/gradio_api/run/predict",
        "/gradio_api/call/x",
        "/gradio_api/vibe-edit",
        "/login",
    ):
        assert ask(gate, "POST", path, content_length="2") == 404, path
    assert ask(gate, "DELETE", "/") == 404 and ask(gate, "PUT", "/uploads") == 404


def test_the_gate_knows_who_asks_and_how_much() -> None:
    gate = Gate(None, hosts_of("127.0.0.1"))
    assert ask(gate, "GET", "/", host="evil.example") == 403, "a foreign name that leads to this machine"
    assert ask(Gate(None, hosts_of("0.0.0.0")), "GET", "/", host="my.server:7860") == 200
    join = {"path": "/gradio_api/queue/join", "content_length": "10"}
    assert ask(gate, "POST", **join, origin="http://localhost:1") == 200
    assert ask(gate, "POST", **join, origin="http://evil.example") == 403
    assert ask(gate, "POST", "/uploads", origin="null") == 403
    for size in (str(MOST_MESSAGE + 1), "-1", "", "9" * 20):
        assert ask(gate, "POST", "/gradio_api/queue/join", content_length=size) == 413
    assert is_loopback("::1") and is_loopback("localhost") and not is_loopback("0.0.0.0") and not is_loopback("a.b")


# The command --------------------------------------------------------------------------------------------------------


def test_what_visitors_sent_is_deleted_when_the_page_is_terminated() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, left_by_exception(), Shelf() as shelf:
        shelf.new(".mp4").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert ended.value.code == 143 and not shelf.folder.exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_needs_gradio_and_a_free_port(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("eqm_video.page.launch.find_spec", lambda name: None)
    assert main(["page", "demo"]) == 2
    page = re.search(r'^page = \["(.*)"\]$', (root / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f'type pip install "{page}"' in capsys.readouterr().err  # a wheel has no constraints.txt beside it
    for words, said in ((["--port", "0"], "--port is 0"), (["--port", "70000"], "from 1 to 65535")):
        assert main(["page", "demo", *words]) == 2
        assert said in capsys.readouterr().err
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: the page cannot listen there .*; give another --port"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen there"):
        listen("192.0.2.1", 7860)
    assert address("0.0.0.0", 5) == "http://127.0.0.1:5" and address("::1", 5) == "http://[::1]:5"

"""The page as people meet it: a true server, crafted requests, ten people at once, and a headless Chromium."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image
from tiny_models import tiny_pipeline

from eqm_video.output.media import write_mp4
from eqm_video.page.gate import hosts_of
from eqm_video.page.launch import listen, serve
from eqm_video.page.served import Served
from eqm_video.page.shelf import Shelf

pytest.importorskip("gradio", reason="the page needs gradio: pip install eqm-video[page]")


class Site:
    """A running page, and raw requests to it."""

    def __init__(self, port: int, served: Served, shelf: Shelf) -> None:
        self.port, self.served, self.shelf = port, served, shelf
        self.config = json.loads(self.ask("GET", "/config")[1])

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        link.putrequest(method, path, skip_host="host" in headers)
        if body is not None:
            headers.setdefault("content-length", str(len(body)))
        for name, value in headers.items():
            link.putheader(name.replace("_", "-"), value)
        link.endheaders(body)
        answer = link.getresponse()
        result = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        link.close()
        return result

    def upload(self, name: str, content: bytes) -> dict[str, str]:
        """The answer to an upload."""
        return json.loads(self.ask("POST", f"/uploads?name={urllib.parse.quote(name)}", content)[1])

    def handler(self, button: str) -> tuple[int, list[Any]]:
        """The number of a button's event, and the values of its inputs at first."""
        parts = {each["id"]: each for each in self.config["components"]}
        for event in self.config["dependencies"]:
            source = parts[event["targets"][0][0]]
            if source["type"] == "button" and source["props"]["value"] == button:
                return event["id"], [parts[number]["props"].get("value") for number in event["inputs"]]
        raise AssertionError(button)

    def press(self, number: int, values: list[Any]) -> str:
        """All messages of an event, as one text."""
        session = uuid.uuid4().hex[:11]
        body = json.dumps({"data": values, "fn_index": number, "session_hash": session}).encode()
        status, answer, _ = self.ask("POST", "/gradio_api/queue/join", body, content_type="application/json")
        assert status == 200, answer
        return self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")[1].decode()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    from eqm_video.page.app import Page, make_app

    with Shelf() as shelf, contextlib.closing(listen("127.0.0.1", 0)) as listener:
        page = Page(Served(tiny_pipeline()), shelf, "tiny")
        thread = threading.Thread(target=serve, args=(make_app(page, hosts_of("127.0.0.1")), listener), daemon=True)
        thread.start()
        yield Site(listener.getsockname()[1], page.served, shelf)


def video(folder: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (12, 24, 32, 3), dtype=np.uint8)
    write_mp4(folder / "mine.mp4", frames, 10)
    return folder / "mine.mp4"


def until(true: Callable[[], object]) -> None:
    """Wait until something is true, for a minute at most."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def leaks(text: str) -> list[str]:
    """Paths of this machine in an answer."""
    places = [
        tempfile.gettempdir(),
        str(Path.home()),
        str(Path.cwd()),
        str(Path(__file__).parent.parent),
        "site-packages",
    ]
    return [place for place in places if len(place) > 1 and re.search(rf"{re.escape(place)}(/|\b)", text)]


# Requests -----------------------------------------------------------------------------------------------------------


def test_files_of_the_server_cannot_be_asked_for(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    places = [str(secret), "/etc/passwd", "../../../../etc/passwd", str(site.shelf.folder), "file:///etc/passwd"]
    crafted = [f"{route}{place}" for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/") for place in places]
    crafted += [f"/files/{urllib.parse.quote(place, safe='')}" for place in places]
    crafted += [
        f"/files/..%2f..%2f{'a' * 18}.gif",
        "/static/../../x",
        "/assets/..%2f..%2fx",
        "/theme/../x",
        "/svelte/x",
    ]
    crafted += [
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/upload_progress?upload_id=a",
        "/monitoring",
        "/docs",
    ]
    for path in crafted:
        status, body, _ = site.ask("GET", path)
        assert status in (403, 404) and b"the secret" not in body and b"root:" not in body, path
        assert leaks(body.decode(errors="replace")) == [], path
    for path in ("/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/call/stream", "/gradio_api/vibe-edit"):
        assert site.ask("POST", path, b"{}")[0] == 404, path


def test_no_answer_names_a_path(site: Site) -> None:
    for path in ("/", "/config", "/gradio_api/info", "/theme.css"):
        status, body, headers = site.ask("GET", path)
        assert status == 200 and leaks(body.decode(errors="replace")) == [], path
        assert (
            headers["x-content-type-options"] == "nosniff"
            and "default-src 'self'" in headers["content-security-policy"]
        )
    number, values = site.handler("Generate")
    for wrong in (
        [*values[:2], {"path": "/etc/passwd"}, *values[3:]],
        [["x"], *values[1:]],
        [*values[:1], 9, *values[2:]],
    ):
        text = site.press(number, wrong)
        assert leaks(text) == [] and "root:" not in text and "Traceback" not in text
    assert (
        leaks(site.ask("POST", "/gradio_api/queue/join", b"not json", content_type="application/json")[1].decode())
        == []
    )


def test_uploads_are_limited_and_answered_in_one_sentence(site: Site, tmp_path: Path, monkeypatch) -> None:
    good = site.upload("mine.mp4", video(tmp_path).read_bytes())
    assert re.fullmatch(r"[\w-]{22}", good["token"]) and good["says"] == "mine.mp4: 12 frames, 1.2 s at 10 fps"
    assert site.ask("GET", f"/files/{good['token']}.mp4")[0] == 404, "an upload is not given back"
    before = len(list(site.shelf.folder.iterdir()))
    for name, content in (
        ("a.mp4", b"x" * 50),
        ("<img src=x>.mp4", b""),
        ("a.exe", b"x"),
        ("", b"x"),
        ("a.png", b"\x89PNG"),
    ):
        answer = site.upload(name, content)
        assert set(answer) == {"error"} and leaks(answer["error"]) == [] and "\n" not in answer["error"]
    monkeypatch.setattr("eqm_video.page.uploads.MOST_BYTES", 2**20)
    assert site.upload("big.mp4", bytes(2**20 + 1))["error"].startswith("big.mp4 is larger than 1 MB")
    assert len(list(site.shelf.folder.iterdir())) == before, "nothing of them is kept"
    assert site.ask("POST", "/uploads?name=a.mp4", b"x", origin="http://evil.example")[0] == 403


def test_an_upload_that_breaks_off_leaves_no_file(site: Site) -> None:
    before = set(site.shelf.folder.iterdir())
    link = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    link.putrequest("POST", "/uploads?name=half.mp4")
    link.putheader("content-length", "1000000")
    link.endheaders(b"0" * 1000)
    until(lambda: set(site.shelf.folder.iterdir()) - before)
    link.close()
    until(lambda: set(site.shelf.folder.iterdir()) == before)


def test_few_files_arrive_at_once_and_slow_ones_give_up(site: Site, tmp_path: Path, monkeypatch) -> None:
    before = set(site.shelf.folder.iterdir())
    monkeypatch.setattr("eqm_video.page.app.SLOWEST", 3.0)
    links = []
    for _ in range(8):
        link = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
        link.putrequest("POST", "/uploads?name=half.mp4")
        link.putheader("content-length", "1000000")
        link.endheaders(b"0" * 1000)
        links.append(link)
    until(lambda: len(set(site.shelf.folder.iterdir()) - before) == 8)
    assert site.upload("mine.mp4", b"x") == {"error": "8 other files are on their way: choose yours again in a moment"}
    for link in links:
        assert json.loads(link.getresponse().read())["error"].startswith("half.mp4 did not arrive in 3 s")
        link.close()
    assert set(site.shelf.folder.iterdir()) == before
    assert "token" in site.upload("mine.mp4", video(tmp_path).read_bytes())


def test_results_are_files_to_download(site: Site) -> None:
    number, values = site.handler("Generate")
    text = site.press(number, values)
    assert "process_completed" in text and "step 4 of 4" in text
    for kind, start in (("gif", b"GIF89a"), ("mp4", b"\0\0\0")):
        path = re.search(rf"files/[\w-]{{22}}\.{kind}", text)[0]
        status, body, headers = site.ask("GET", f"/{path}")
        assert status == 200 and body.startswith(start) and headers["content-type"].endswith(kind)


def test_wrong_words_about_uploads_are_one_sentence(site: Site, tmp_path: Path, capfd) -> None:
    number, values = site.handler("Make the rest")
    token = site.upload("mine.mp4", video(tmp_path).read_bytes())["token"]
    for at, known, sentence in (
        ("nan", "0", "the start is nan: it must be a number of seconds"),
        ("1e400", "0", "the start is 1e400: it must be a number of seconds"),
        ("1.1", "1", "frame 1 cannot be kept: your files show frame 0 alone"),
        ("0", "0-2", "is left to sample; name fewer frames</p>"),
        ("0", "9", "frames to keep 9: a clip has 3 frames"),
    ):
        said = site.press(number, [token, "", at, known, *values[4:]])
        assert sentence in said.replace('\\"', '"'), said
    assert "Traceback" not in capfd.readouterr().err


def test_too_little_memory_is_one_sentence_and_the_page_goes_on(site: Site, monkeypatch, capfd) -> None:
    number, values = site.handler("Generate")
    with monkeypatch.context() as patch:
        patch.setattr(site.served.pipeline, "decode", lambda latents: torch.empty(2**50))  # torch refuses by itself
        said = site.press(number, values)
    assert "too little free memory" in said and "DefaultCPUAllocator" not in said and leaks(said) == []
    assert "out of memory: " in capfd.readouterr().err
    assert "evaluations of the field" in site.press(number, values)


def test_ten_people_at_once_all_get_theirs(site: Site) -> None:
    number, values = site.handler("Generate")
    answers: dict[int, str] = {}

    def person(seed: int) -> None:
        answers[seed] = site.press(number, [*values[:2], str(seed), *values[3:]])

    people = [threading.Thread(target=person, args=(seed,)) for seed in range(10)]
    for each in people:
        each.start()
    for each in people:
        each.join(120)
    assert sorted(answers) == list(range(10))
    assert all("process_completed" in text and 'success":true' in text for text in answers.values())
    films = {seed: re.findall(r"files/[\w-]{22}\.gif", text)[0] for seed, text in answers.items()}
    pictures = {seed: site.ask("GET", f"/{path}")[1] for seed, path in films.items()}
    assert len(set(pictures.values())) == 10, "ten seeds, ten clips"


# A browser ----------------------------------------------------------------------------------------------------------

VIEW = "[...document.querySelectorAll('.eqm-view.prose')].filter(e => e.offsetParent).map(e => e.innerText).join()"


def fill(browser: Browser, words: str, text: str) -> None:
    """Type into the field whose label has these words."""
    field = f"[...document.querySelectorAll('label')].find(e => e.textContent.includes('{words}'))"
    browser.wait(f"!!{field}")
    browser.run(
        f"(() => {{ const box = {field}.querySelector('textarea, input'); box.value = '{text}';"
        "box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    time.sleep(0.5)  # the page tells the server a moment later


@pytest.fixture(scope="module")
def browser(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("websocket", reason="the browser is driven over a websocket: pip install websocket-client")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        made.look(1280, 900)
        made.open(f"http://127.0.0.1:{site.port}/")
        made.wait("[...document.querySelectorAll('button')].some(each => each.textContent.trim() === 'Stop')", 120)
        yield made
        foreign = [address for address in made.requests() if f"//127.0.0.1:{site.port}/" not in address]
        assert [address for address in foreign if not address.startswith("chrome")] == [], (
            "nothing is fetched from elsewhere"
        )


def test_a_visitor_generates_and_downloads(browser: Browser) -> None:
    browser.click("Generate")
    browser.wait(f"{VIEW}.includes('evaluations')", 120)
    assert browser.run("document.querySelectorAll('.eqm-chart polyline').length") == 6, "gradient and gamma of 3 frames"
    sizes = "Promise.all([...document.querySelectorAll('.eqm-download')].map(e => fetch(e.href).then(r => r.blob())"
    assert browser.run(f"{sizes}.then(b => b.type)))") == ["image/gif", "video/mp4"]
    assert browser.run("document.querySelector('.eqm-film img').naturalWidth") == 16
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_visitor_is_told_about_wrong_settings(browser: Browser) -> None:
    browser.click("How to descend")
    columns = "new Set([...document.querySelectorAll('.eqm-settings label')].filter(e => e.offsetParent)"
    browser.wait(f"{columns}.map(e => Math.round(e.getBoundingClientRect().x))).size > 3", 10)  # side by side
    for typed in ("many", ""):
        fill(browser, "updates of", typed)
        browser.click("Generate")
        browser.wait(f"{VIEW}.includes('{'steps is many: it must be a whole number' if typed else 'evaluations'}')", 60)


def test_a_visitor_paints_over_known_frames(browser: Browser, tmp_path: Path) -> None:
    browser.click("From your frames")
    browser.wait("!!document.querySelector('input[data-target=eqm-first]')")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    browser.upload("input[data-target=eqm-first]", tmp_path / "broken.mp4")
    browser.wait("document.querySelector('.eqm-drop output').innerText.startsWith('broken.mp4: ')")
    browser.upload("input[data-target=eqm-first]", video(tmp_path))
    browser.wait("document.querySelectorAll('.eqm-brush button').length === 3")
    kept = "document.querySelector('#eqm-known textarea, #eqm-known input').value"
    browser.wait(f"{kept} === '0'")
    browser.stroke([".eqm-brush [data-frame='2']"])
    browser.wait(f"{kept} === '0,2'")
    browser.stroke([".eqm-brush [data-frame='0']", ".eqm-brush [data-frame='1']", ".eqm-brush [data-frame='2']"])
    browser.wait(f"{kept} === ''")
    browser.stroke([".eqm-brush [data-frame='0']", ".eqm-brush [data-frame='1']"])
    browser.wait(f"{kept} === '0,1'")
    time.sleep(0.5)
    browser.click("Make the rest")
    browser.wait(f"{VIEW}.includes('kept: 0-1')", 120)
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "end.png")
    browser.upload("input[data-target=eqm-last]", tmp_path / "end.png")
    browser.wait("document.querySelectorAll('.eqm-drop output')[1].innerText === 'end.png: a picture'")
    browser.wait(f"{kept} === '0,2'")  # the last picture is kept as well, or there would be no in-between


def test_a_visitor_composes_lengthens_and_scores(browser: Browser, tmp_path: Path) -> None:
    browser.click("Compose")
    browser.wait(
        "[...document.querySelectorAll('label')].some(e => e.textContent.includes('plain sum') && e.offsetParent)"
    )
    browser.click("Compose")
    browser.wait(f"{VIEW}.includes('evaluations')", 120)
    browser.click("Long video")
    browser.click("Make video")
    browser.wait(f"{VIEW}.includes('15 frames in')", 120)
    browser.click("Score")
    browser.wait("!!document.querySelector('input[data-target=eqm-scored]')")
    browser.upload("input[data-target=eqm-scored]", video(tmp_path))
    browser.wait(
        "[...document.querySelectorAll('.eqm-drop output')].some(e => e.offsetParent && e.innerText.includes('fps'))"
    )
    time.sleep(0.5)
    browser.click("Score")
    browser.wait(f"{VIEW}.includes('largest jump')", 120)


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_the_page_fits_a_phone_and_the_dark(browser: Browser, width: int, dark: bool) -> None:
    browser.look(1280, 844, dark)
    for tab in ("Generate", "From your frames"):
        browser.look(1280, 844, dark)  # on a phone, tabs that do not fit lie behind a button
        browser.click(tab)
        browser.look(width, 844, dark)
        browser.wait(f"window.innerWidth === {width} && document.documentElement.scrollWidth <= {width}", 10)
    ground = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") == dark and len(ground) >= 3


def is_free(site: Site) -> None:
    """Wait until the model has no job any more."""
    end = time.monotonic() + 60
    while site.served.busy:
        assert time.monotonic() < end, "the model is still at work for somebody who has stopped it, or left"
        time.sleep(0.1)


def test_stop_ends_a_long_descent_and_so_does_leaving(browser: Browser, site: Site) -> None:
    browser.look(1280, 900)
    browser.click("Long video")
    fill(browser, "to 512", "512")
    browser.click("Make video")
    browser.wait(rf"/window ([2-9]|\d\d+) of/.test({VIEW})", 120)
    browser.click("Stop")
    is_free(site)
    browser.click("Generate")
    browser.wait("!!document.querySelector('input[type=range]')?.offsetParent")
    browser.click("Generate")
    browser.wait(f"{VIEW}.includes('evaluations')", 60)
    browser.click("Long video")
    browser.click("Make video")
    browser.wait(rf"/window ([2-9]|\d\d+) of/.test({VIEW})", 120)
    assert site.served.busy
    browser.open("about:blank")
    is_free(site)

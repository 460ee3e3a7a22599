"""The page in gradio: components, events, and the two addresses of files. All that is computed lies in `served`."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from eqm_video.errors import UserError
from eqm_video.output import media
from eqm_video.page import controls, drawing, uploads
from eqm_video.page.gate import Gate
from eqm_video.page.served import MOST_LENGTH, MOST_SAMPLES, Event, Made, Moment, Scored, Served, Wish
from eqm_video.page.shelf import Shelf
from eqm_video.sampling.known import name_frames, parse_known
from eqm_video.system.memory import is_out_of_memory, out_of_memory
from eqm_video.system.reading import asset
from eqm_video.wording import duration

WAITING = 40  # people in the queue, at most
UPLOADS = 8  # files that may arrive at once
SLOWEST = 300.0  # seconds that a file may take to arrive
LAST = 0.5  # seconds after Stop in which a last state may still arrive
UNLABELLED = "no label"
TERMS = 3  # rows of a composition
MEDIA = {".gif": "image/gif", ".mp4": "video/mp4", ".png": "image/png"}
NO_MEMORY = "the machine has too little free memory for that: ask for fewer clips, a shorter video, or try again later"
REFUSED = (UserError, MemoryError, RuntimeError)  # a RuntimeError where it is torch's about memory
PRIVATE = {"api_visibility": "private", "show_progress": "minimal"}
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}


class Page:
    """A served model, the shelf of its files, and the handlers of the page's buttons."""

    def __init__(self, served: Served, shelf: Shelf, name: str) -> None:
        self.served, self.shelf, self.name = served, shelf, name
        self.controls = controls.controls(served.pipeline)

    # Handlers -------------------------------------------------------------------------------------------------------

    def generate(self, label: str, count: Any, seed: Any, *typed: Any) -> Iterator[str]:
        """Clips of a label, from noise."""
        return self._shown(lambda: self.served.sample(self._wish(label, count, seed, typed)))

    def continue_frames(
        self, first: str, last: str, at: Any, known: str, label: str, seed: Any, *typed: Any
    ) -> Iterator[str]:
        """A clip of which some frames are those of uploads."""

        def events() -> Iterator[Event]:
            how = controls.read_sampling(self.controls, typed)
            pixels, available, rate = self._clip(first, last, at)
            kept = self._kept(known)
            if missing := sorted(set(kept) - set(available)):
                absent, there = (
                    f"{'frame' if len(each) == 1 else 'frames'} {name_frames(each)}" for each in (missing, available)
                )
                raise UserError(f"{absent} cannot be kept: your files show {there} alone")
            if not kept and how.start_gamma == 0:
                raise UserError("choose the frames to keep: tap them, or type for example first, 0-3 or ends")
            labels = (self._label(label),)
            wish = Wish(labels, controls.read_seed(seed), how, pixels, tuple(kept), rate)
            return self.served.sample(wish)

        return self._shown(events)

    def compose(self, plain: bool, count: Any, seed: Any, *rest: Any) -> Iterator[str]:
        """Clips of several labels at once. rest: labels, weights, and the settings."""

        def events() -> Iterator[Event]:
            labels, weights, typed = rest[:TERMS], rest[TERMS : 2 * TERMS], rest[2 * TERMS :]
            terms = controls.read_terms(labels, weights, self.served.pipeline.labels)
            how = controls.read_sampling(self.controls, typed, composition=terms, plain_sum=bool(plain))
            many = controls.read_whole(count, "the number of clips", 1, MOST_SAMPLES)
            return self.served.sample(Wish((None,) * many, controls.read_seed(seed), how))

        return self._shown(events)

    def lengthen(self, label: str, length: Any, overlap: Any, seed: Any, *typed: Any) -> Iterator[str]:
        """A long video, in windows."""

        def events() -> Iterator[Event]:
            how = controls.read_sampling(self.controls, typed)
            frames = controls.read_whole(length, "the length", self.served.frames + 1, MOST_LENGTH)
            shared = controls.read_whole(overlap, "the overlap", 1, self.served.frames - 1)
            labels = (self._label(label),)
            return self.served.sample(Wish(labels, controls.read_seed(seed), how, length=frames, overlap=shared))

        return self._shown(events)

    def score(self, first: str, at: Any, label: str) -> Iterator[str]:
        """The scores of an upload, frame by frame."""

        def events() -> Iterator[Event]:
            pixels, available, rate = self._clip(first, "", at)
            clip = pixels[: len(available)] if rate is not None else pixels
            return self.served.score(clip, self._label(label), rate)

        return self._shown(events)

    def offer(self, first: str, last: str, at: Any) -> tuple[str, str]:
        """The brush over the frames of uploads, and the words of the frames that are kept at first."""
        if not first and not last:
            return "", ""
        try:
            pixels, available, _ = self._clip(first, last, at)
        except REFUSED as error:
            return drawing.refusal(_sentence(error)), ""
        kept = available
        if len(available) == self.served.frames:  # a video: its beginning, and what was chosen as the last frame
            kept = available[: max(1, self.served.frames // 4)] + (available[-1:] if last else [])
        return drawing.brush(pixels, available, kept), ",".join(map(str, kept))

    def brush(self, first: str, last: str, at: Any, known: str) -> str:
        """The brush after words were typed."""
        try:
            pixels, available, _ = self._clip(first, last, at)
            kept = self._kept(known)
        except REFUSED as error:
            return drawing.refusal(_sentence(error))
        return drawing.brush(pixels, available, kept)

    def receive(self, path: Path, name: str) -> dict[str, str]:
        """The token of an upload and a line about it, or the sentence about its fault."""
        try:
            upload = uploads.look(path, name)
        except REFUSED as error:
            path.unlink()
            return {"error": _sentence(error)}
        return {"token": self.shelf.keep(path, upload), "says": upload.says}

    # Parts ----------------------------------------------------------------------------------------------------------

    def _wish(self, label: str, count: Any, seed: Any, typed: Sequence[Any]) -> Wish:
        many = controls.read_whole(count, "the number of clips", 1, MOST_SAMPLES)
        how = controls.read_sampling(self.controls, typed)
        return Wish((self._label(label),) * many, controls.read_seed(seed), how)

    def _label(self, label: str) -> str | None:
        if label in ("", None, UNLABELLED):
            return None
        if label not in self.served.labels:
            raise UserError(f"the label {str(label)[:40]!r} is not one of this model")
        return label

    def _clip(self, first: str, last: str, at: Any) -> tuple[Any, list[int], float | None]:
        """The clip that uploads make, the numbers of the frames that it shows, and its rate."""
        try:
            start = float(at or 0)
        except (TypeError, ValueError):
            start = math.nan
        if not math.isfinite(start):
            raise UserError(f"the start is {str(at)[:20]}: it must be a number of seconds, such as 1.5")
        cuts = [self._cut(first, start), self._cut(last, 0.0)]
        return uploads.join(*cuts)

    def _kept(self, known: str) -> list[int]:
        """The numbers of the frames to keep, as typed; the sentence of the command line calls its option --known."""
        try:
            return list(parse_known(known).of(self.served.frames)) if known.strip() else []
        except UserError as error:
            text = str(error).replace("--known", "frames to keep", 1).removesuffix(", or give more --frames")
            raise UserError(text) from error

    def _cut(self, token: str, at: float) -> uploads.Cut | None:
        if not token:
            return None
        kept = self.shelf.find(token)
        if kept is None or not isinstance(kept.about, uploads.Upload):
            raise UserError("your file is gone, since the page keeps files for an hour: choose it again")
        model = self.served
        return uploads.cut_clip(kept.about, model.frames, model.size, model.pipeline.config.fps, at)

    def _shown(self, start: Callable[[], Iterator[Event]]) -> Iterator[str]:
        """The view of each event, and of a refusal."""
        try:
            last = Moment(0.0, "")
            for event in start():
                if isinstance(event, Moment):  # without frames it shows those of the moment before
                    last = event if event.frames is not None else replace(event, frames=last.frames, gamma=last.gamma)
                    yield _moment(last)
                else:
                    yield self._made(event) if isinstance(event, Made) else _scored(event)
        except REFUSED as error:
            yield drawing.refusal(_sentence(error))

    def _made(self, made: Made) -> str:
        """Films to look at and to download, and the charts."""
        films = []
        for number, clip in enumerate(made.clips):
            name = f"eqm-{number}" if len(made.clips) > 1 else "eqm"
            addresses = []
            for kind in (".png",) if len(clip) == 1 else (".gif", ".mp4"):
                path = self.shelf.new(kind)
                media.write(path, clip, made.fps)
                addresses.append((f"files/{self.shelf.keep(path)}{kind}", name + kind))
            caption = f"{len(clip)} frames, {made.fps:.3g} fps" if len(clip) > 1 else "picture"
            films.append(drawing.film(addresses[0][0], addresses, caption, clip.shape[2]))
        strip = drawing.strip(made.clips[:1, :64])
        kept = f"; kept: {name_frames(made.known)}" if made.known else ""
        row = Markup('<div class="eqm-films">{}</div>').format(Markup("").join(films))
        return drawing.note(made.says + kept) + row + strip + _charts(made.charts)


def _sentence(error: Exception) -> str:
    """The sentence that a visitor reads about one of `REFUSED`. An error that is neither is raised again."""
    if isinstance(error, UserError):
        return str(error)
    if not is_out_of_memory(error):
        raise error
    print(out_of_memory(error, "the page goes on"), file=sys.stderr, flush=True)
    return NO_MEMORY


def _moment(moment: Moment) -> str:
    strip = "" if moment.frames is None else drawing.strip(moment.frames, moment.gamma)
    return drawing.progress(moment.done, moment.says) + strip + _charts(moment.charts)


def _scored(scored: Scored) -> str:
    return drawing.note(scored.says) + drawing.strip(scored.clip[None]) + _charts(scored.charts)


def _charts(charts: Sequence[Any]) -> Markup:
    return Markup('<div class="eqm-charts">{}</div>').format(Markup("").join(map(drawing.chart, charts)))


# Components ---------------------------------------------------------------------------------------------------------


def build(page: Page) -> gr.Blocks:
    """The page's components and events."""
    served, video = page.served, page.served.frames > 1
    with gr.Blocks(title=f"eqm-video: {page.name}", analytics_enabled=False) as blocks:
        gr.HTML(_title(page), elem_classes="eqm-title")
        starts: list[Callable[[list[Any], Any], None]] = []
        with gr.Tabs():
            with gr.Tab("Generate"):
                starts.append(_generate_tab(page))
            if video:
                with gr.Tab("From your frames"):
                    starts.append(_frames_tab(page))
            if len(served.labels) > 1:
                with gr.Tab("Compose"):
                    starts.append(_compose_tab(page))
            if video:
                with gr.Tab("Long video"):
                    starts.append(_long_tab(page))
            with gr.Tab("Score"):
                _score_tab(page)
        with gr.Accordion("How to descend", open=False):
            seed = gr.Textbox("0", label="seed", info="the same seed and settings make the same clip", max_lines=1)
            settings = _settings(page.controls)
        for start in starts:
            start(settings, seed)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=4)


def _title(page: Page) -> Markup:
    served, config = page.served, page.served.pipeline.config
    height, width = served.size
    what = f"{served.frames} frames of {width}x{height} at {config.fps:g} fps" if served.frames > 1 else "images"
    labels = f", {len(served.labels)} labels" if served.labels else ", no labels"
    line = f"{what}{labels}. Sampling is gradient descent on one learned field; frames at rest have gradient 0."
    return Markup("<h1>eqm-video: {}</h1><p>{}</p>").format(page.name, line)


def _settings(offered: Sequence[controls.Control]) -> list[Any]:
    """A component for each control, in rows; the rare ones folded."""

    def component(control: controls.Control) -> Any:
        shared = {"label": control.title, "info": control.help, "min_width": 220}
        if control.kind == "switch":
            return gr.Checkbox(False, **shared)
        if control.kind == "choice":
            return gr.Dropdown(["", *control.choices], value="", filterable=False, **shared)
        return gr.Textbox("", placeholder=control.unset, max_lines=1, **shared)

    usual = [control for control in offered if not control.entry.option.rare]
    rare = [control for control in offered if control.entry.option.rare]
    with gr.Row(elem_classes="eqm-settings"):
        made = [component(control) for control in usual]
    with gr.Accordion("More settings", open=False), gr.Row(elem_classes="eqm-settings"):
        made += [component(control) for control in rare]
    return made


def _labels(page: Page, value: str | None = None) -> gr.Dropdown:
    choices = [*page.served.labels, UNLABELLED]
    return gr.Dropdown(choices, value=value or choices[0], label="label", visible=bool(page.served.labels))


def _buttons(word: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(word, variant="primary", min_width=80), gr.Button("Stop", min_width=80)


def _view() -> gr.HTML:
    return gr.HTML("", elem_classes="eqm-view")


def _run(start: gr.Button, stop: gr.Button, handler: Callable, inputs: list[Any], view: gr.HTML) -> None:
    """Run a handler, one at a time for all people; Stop ends it, or takes it out of the queue."""

    def stream(*values: Any) -> Iterator[str]:  # gradio streams only what a generator function yields
        yield from handler(*values)

    event = start.click(stream, inputs, view, **PRIVATE, **ONE_AT_A_TIME)

    def stopped() -> str:
        time.sleep(LAST)
        return drawing.note("stopped")

    stop.click(None, cancels=[event], **PRIVATE)  # alone, so that it is sent at once
    stop.click(stopped, None, view, concurrency_limit=None, **PRIVATE)


def _generate_tab(page: Page) -> Callable[[list[Any], Any], None]:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            label = _labels(page)
            count = gr.Slider(1, MOST_SAMPLES, value=1, step=1, label="clips")
            start, stop = _buttons("Generate")
        with gr.Column(scale=2, min_width=300):
            view = _view()
    return lambda settings, seed: _run(start, stop, page.generate, [label, count, seed, *settings], view)


def _drop(identifier: str, words: str) -> gr.HTML:
    text = Markup(
        '<label class="eqm-drop">{}<input type="file" accept="video/*,image/*" data-target="{}">'
        "<output></output></label>"
    )
    return gr.HTML(text.format(words, identifier))


def _frames_tab(page: Page) -> Callable[[list[Any], Any], None]:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            _drop("eqm-first", "A video to continue, or the first picture")
            _drop("eqm-last", "The last picture, for an in-between (may be left out)")
            first = gr.Textbox("", elem_id="eqm-first", visible="hidden", label="first")
            last = gr.Textbox("", elem_id="eqm-last", visible="hidden", label="last")
            at = gr.Textbox("0", label="from second", info="start of the clip in the video", max_lines=1)
            known = gr.Textbox(
                "",
                label="frames to keep",
                elem_id="eqm-known",
                max_lines=1,
                info="paint over the frames, or type first, first:4, ends, 0-3, 0,-1; all others are made",
            )
            label = _labels(page, UNLABELLED)
            start, stop = _buttons("Make the rest")
        with gr.Column(scale=2, min_width=300):
            brush = gr.HTML("")
            view = _view()
    sources = [first, last, at]
    quick = {"queue": True, "concurrency_limit": 4, **PRIVATE, "show_progress": "hidden"}
    for source in (first, last):
        source.change(page.offer, sources, [brush, known], **quick)
    at.submit(page.offer, sources, [brush, known], **quick)
    known.submit(page.brush, [*sources, known], brush, **quick)
    return lambda settings, seed: _run(
        start, stop, page.continue_frames, [*sources, known, label, seed, *settings], view
    )


def _compose_tab(page: Page) -> Callable[[list[Any], Any], None]:
    names = page.served.labels
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            labels, weights = [], []
            for number in range(TERMS):
                with gr.Row():
                    value = "" if number else names[0]
                    labels.append(gr.Dropdown(["", *names], value=value, label="label", min_width=120))
                    weights.append(gr.Textbox("1", label="weight", max_lines=1, min_width=80))
            plain = gr.Checkbox(False, label="plain sum", info="the fields' sum, without the unlabelled one")
            count = gr.Slider(1, MOST_SAMPLES, value=1, step=1, label="clips")
            start, stop = _buttons("Compose")
        with gr.Column(scale=2, min_width=300):
            view = _view()
    return lambda settings, seed: _run(
        start, stop, page.compose, [plain, count, seed, *labels, *weights, *settings], view
    )


def _long_tab(page: Page) -> Callable[[list[Any], Any], None]:
    frames = page.served.frames
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            label = _labels(page)
            length = gr.Textbox(str(5 * frames), label="frames", info=f"{frames + 1} to {MOST_LENGTH}", max_lines=1)
            overlap = gr.Textbox(
                str(min(4, frames // 2)),
                label="overlap",
                info="frames that a window takes over from the one before",
                max_lines=1,
            )
            start, stop = _buttons("Make video")
        with gr.Column(scale=2, min_width=300):
            view = _view()
    return lambda settings, seed: _run(start, stop, page.lengthen, [label, length, overlap, seed, *settings], view)


def _score_tab(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            _drop("eqm-scored", "A video or a picture: how unlike the training data is each frame?")
            first = gr.Textbox("", elem_id="eqm-scored", visible="hidden", label="scored")
            at = gr.Textbox("0", label="from second", info="start of the clip in the video", max_lines=1)
            label = _labels(page, UNLABELLED)
            start, stop = _buttons("Score")
        with gr.Column(scale=2, min_width=300):
            view = _view()
    _run(start, stop, page.score, [first, at, label], view)


# Server -------------------------------------------------------------------------------------------------------------


def make_app(page: Page, hosts: set[str]) -> Gate:
    """The whole server as an ASGI application behind its gate. hosts: as for `Gate`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    room = anyio.Semaphore(UPLOADS)

    @app.post("/uploads")
    async def take(request: Request, name: str = "") -> Response:
        try:
            room.acquire_nowait()
        except anyio.WouldBlock:
            says = f"{UPLOADS} other files are on their way: choose yours again in a moment"
            return JSONResponse({"error": says}, status_code=503)
        try:
            path = page.shelf.new(uploads.ending_of(name))
            await _store(request, path, name)
            answer = await run_in_threadpool(page.receive, path, name)
        except UserError as error:
            answer = {"error": str(error)}
        finally:
            room.release()
        return JSONResponse(answer, status_code=422 if "error" in answer else 200)

    @app.get("/files/{token}.{kind}")
    async def give(token: str, kind: str) -> Response:
        kept = page.shelf.find(token)
        if kept is None or kept.about is not None or kept.path.suffix != f".{kind}":
            return Response("this file is gone", status_code=404, media_type="text/plain")
        return FileResponse(kept.path, media_type=MEDIA[kept.path.suffix])

    css, script = (asset(f"page/{name}") for name in ("page.css", "page.js"))
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    mounted = gr.mount_gradio_app(
        app,
        build(page),
        path="/",
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        max_file_size=1,
        theme=theme,
        css=css,
        head=f"<script>{script}</script>",
    )
    return Gate(mounted, hosts)


async def _store(request: Request, path: Path, name: str) -> None:
    """Write the body of a request to `path`; UserError if it is too large. Only a whole body leaves a file."""
    total = 0
    with contextlib.ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)  # a sender who leaves half-way ends the stream with an error
        with path.open("wb") as file, anyio.move_on_after(SLOWEST) as clock:
            async for chunk in request.stream():
                total += len(chunk)
                if total > uploads.MOST_BYTES:
                    raise uploads.too_large(name)
                file.write(chunk)
        if clock.cancelled_caught:
            raise UserError(f"{uploads.display_name(name)} did not arrive in {duration(SLOWEST)}: give a smaller one")
        undo.pop_all()

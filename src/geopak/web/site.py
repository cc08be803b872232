"""The page, its API and what guards both, as one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles

from geopak.errors import GeopakError
from geopak.predictor import GeopakPredictor
from geopak.retrieval import PhotoIndex
from geopak.web.api import make_routes, refuse_query
from geopak.web.asking import DOWNLOADS, Asking
from geopak.web.guard import Guard
from geopak.web.photos import Limits

FILES = Path(__file__).parent / "files"
_SWEEP_SECONDS = 20.0


def make_site(
    predictor: GeopakPredictor,
    limits: Limits,
    folder: Path,
    hosts: Sequence[str] = (),
    known: PhotoIndex | None = None,
) -> Guard:
    """The application that a server runs.

    Args:
        predictor: the model.
        limits: of requests.
        folder: private, of Gradio's uploads (``GRADIO_TEMP_DIR``) and of results.
        hosts: names that the server may be called by; empty: any.
        known: train photos to compare with.
    """
    folder = folder.resolve()
    asking = Asking(predictor, limits, folder, known)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(folder, limits.keep_minutes * 60))
        try:
            yield
        finally:
            sweeping.cancel()
            asking.close()

    app = FastAPI(
        title=f"Where in {asking.region.title}?",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    app.include_router(make_routes(asking))
    app.add_exception_handler(RequestValidationError, refuse_query)
    base = asking.map_base()

    @app.get("/map/base.json", include_in_schema=False)
    def map_base() -> JSONResponse:
        return JSONResponse(base)

    app.mount("/map", StaticFiles(directory=FILES))
    gr.mount_gradio_app(
        app,
        make_page(asking, limits),
        path="/",
        allowed_paths=[],
        blocked_paths=[str(predictor.trained.path.resolve().parent)],
        show_error=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        max_file_size=int(limits.max_mb * 1e6),
        footer_links=[],
        theme=_theme(),
        css=(FILES / "page.css").read_text(encoding="utf-8"),
        head='<script src="map/map.js" defer></script>',
    )
    return Guard(app, limits, folder, hosts)


def make_page(asking: Asking, limits: Limits) -> gr.Blocks:
    """The page: a photo, its place on a map, why; many photos, and files of their places."""
    title = f"Where in {asking.region.title}?"
    accepted = f"JPEG, PNG, WebP and others, up to {limits.max_mb:g} MB"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(
            f'<div class="geopak-head"><h1>{title}</h1><p>Give a photo, and see where it was '
            "probably taken, and how sure that is. Photos stay on this machine, lose their "
            f"metadata on arrival, and are deleted after {limits.keep_minutes:g} minutes."
            "</p></div>"
        )
        with gr.Tabs():
            with gr.Tab("One photo"), gr.Row(elem_id="one"):
                with gr.Column(scale=4, min_width=300):
                    photo = gr.Image(
                        type="filepath",
                        image_mode=None,
                        sources=["upload", "clipboard"],
                        label="Photo",
                        show_label=False,
                        height=300,
                        buttons=[],
                        elem_id="photo",
                        placeholder=f"Drop or paste a photo, or click to choose one\n{accepted}",
                    )
                    reason = gr.HTML(elem_id="why")
                with gr.Column(scale=6, min_width=320):
                    place = gr.HTML(asking.answer_html(None), elem_id="place")
            with gr.Tab("Many photos"):
                photos = gr.File(
                    file_count="multiple",
                    file_types=["image"],
                    label=f"Up to {limits.max_photos} photos, {limits.max_batch_mb:g} MB together",
                    height=180,
                    elem_id="photos",
                )
                ask = gr.Button("Find their places", variant="primary", elem_id="ask")
                told = gr.HTML(elem_id="told")
                with gr.Row():
                    downloads = [
                        gr.DownloadButton(label, visible=False, elem_id=f"download{kind[1:]}")
                        for kind, label in zip(
                            DOWNLOADS,
                            ("Table (CSV)", "For maps (GeoJSON)", "Map page (HTML)"),
                            strict=True,
                        )
                    ]
        gr.HTML(
            '<p class="geopak-foot">A guess from what is visible, not evidence of where '
            "anyone was. "
            '<a href="api">API for programs</a></p>'
        )

        async def locate_many(paths: list[str] | None) -> list[Any]:
            hidden = [gr.update(visible=False)] * len(DOWNLOADS)
            if not paths:
                return [asking.refusal_html("Please give some photos first."), *hidden]
            try:
                answers, files = await asking.files([Path(path) for path in paths])
            except GeopakError as error:
                return [asking.refusal_html(str(error)), *hidden]
            return [
                asking.many_html(answers),
                *(gr.update(value=file, visible=True) for file in files),
            ]

        event: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        photo.change(
            asking.located, photo, [place, reason], trigger_mode="always_last", **event
        ).then(asking.explained, photo, reason, **event)
        ask.click(locate_many, photos, [told, *downloads], **event)
    # Nobody waits in Gradio's line, which knows no patience: the model's own is behind it.
    page.queue(
        max_size=limits.max_waiting, default_concurrency_limit=limits.max_waiting, api_open=False
    )
    return page


def _theme() -> gr.themes.Base:
    """Of fonts that every machine has: the page asks no other server for any."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )


async def _sweep(folder: Path, seconds: float) -> None:
    """Deletes what has lain in the folder for longer, again and again."""
    while True:
        await asyncio.to_thread(delete_old, folder, seconds)
        await asyncio.sleep(min(_SWEEP_SECONDS, seconds / 3))


def delete_old(folder: Path, seconds: float) -> None:
    """Deletes files that have lain in a folder for longer, and folders that are empty since."""
    before = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime > before:
                continue
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    shutil.rmtree(path)
            else:
                path.unlink()

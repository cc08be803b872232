"""The page as visitors meet it: the real command, its API, and a real browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from geopak import GeopakPredictor
from geopak.retrieval import PhotoIndex
from geopak.web.asking import Asking
from geopak.web.photos import Limits, without_metadata
from geopak.why import explain

from ..web.test_photos import SECRET, exif

CHROMIUM = Path("/usr/bin/chromium")
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


class Served:
    """A server of its own process: its address, its private folder, the photos at hand."""

    def __init__(self, url: str, folder: Path, process: subprocess.Popen[str], photos: list[Path]):
        self.url, self.folder, self.process, self.photos = url, folder, process, photos


def begin(ckpt: Path, temporary: Path, *arguments: str) -> tuple[str, subprocess.Popen[str]]:
    temporary.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "geopak.app", f"ckpt={ckpt}", "port=0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        # Under nohup the tests have it ignored, and so would the server.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert process.stdout is not None
    lines, until = [], time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if select.select([process.stdout], [], [], 1)[0]:
            lines.append(process.stdout.readline())
            if found := re.search(r"open (http://\S+) in a browser", lines[-1]):
                url = found[1]
                break
    else:
        process.kill()
        raise AssertionError("".join(lines))
    while time.monotonic() < until:
        try:
            httpx.get(f"{url}/api/model", timeout=5).raise_for_status()
            return url, process
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(url)


def end(process: subprocess.Popen[str], by: signal.Signals = signal.SIGTERM) -> int:
    """Ends a server in good order; its exit status."""
    process.send_signal(by)
    try:
        return process.wait(30)
    finally:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def served(
    home: Path, phases: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    temporary, root = tmp_path_factory.mktemp("served"), home / "data/synthetic"
    url, process = begin(
        phases[2], temporary, "max_mb=2", "max_megapixels=4", "timeout_s=30", "max_photos=6",
        f"prepared={root}/prepared", f"feature_folder={temporary}/features",
    )  # fmt: skip
    (folder,) = temporary.glob("geopak-app-*")
    photos = sorted((root / "photos").rglob("*.jpg"))[:24]
    yield Served(url, folder, process, photos)
    # A terminal that is closed: no photo is left behind.
    assert any(folder.rglob("*.jpg"))
    end(process, signal.SIGHUP)
    assert not folder.exists()


def with_secret(path: Path) -> bytes:
    """A photo whose EXIF data hold a place and a secret."""
    file = io.BytesIO()
    with Image.open(path) as image:
        image.save(file, "JPEG", exif=exif(), quality=95)
    assert SECRET in file.getvalue()
    return file.getvalue()


def stored(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_the_api_answers_as_the_predictor_does_and_stores_nothing(
    served: Served, phases: dict[int, Path]
) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu")
    before = stored(served.folder)
    for path in served.photos[:3]:
        content = with_secret(path)
        answer = httpx.post(f"{served.url}/api/locate", content=content)
        assert answer.status_code == 200
        assert SECRET.decode() not in answer.text
        expected = predictor.predict(content).to_dict()
        assert set(answer.json()) == set(expected) - {"photo", "error"} | {"model"}
        assert answer.json()["province"] == expected["province"]
        for key in ("lat", "lon", "confidence"):
            assert answer.json()[key] == pytest.approx(expected[key], abs=1e-3)
    assert stored(served.folder) == before


def test_the_api_says_why(served: Served, home: Path, phases: dict[int, Path]) -> None:
    answer = httpx.post(
        f"{served.url}/api/locate?why=true", content=served.photos[0].read_bytes(), timeout=60
    ).json()
    assert answer["why"]["cell_id"] == answer["hypotheses"][0]["cell_id"]
    assert sum(answer["why"]["encoders"].values()) == pytest.approx(1)
    with Image.open(io.BytesIO(base64.b64decode(answer["why"]["heat_map_jpeg"]))) as picture:
        assert picture.size == (448, 448)
    near = answer["why"]["nearest_train_photos"]
    root = home / "data/synthetic"
    trained = GeopakPredictor(phases[2], device="cpu").trained
    index = PhotoIndex.of_folder(
        trained.model, trained.region, root / "prepared", root, served.folder.parent / "features"
    )
    features = explain(trained, served.photos[0], steps=1).features
    expected = index.nearest(features, 6, (answer["lat"], answer["lon"]))
    assert [(p["province"], p["similarity"], p["away_km"]) for p in near] == [
        (
            trained.region.names[p.province_id],
            pytest.approx(p.similarity, abs=1e-3),
            pytest.approx(p.away_km, abs=1),
        )
        for p in expected
    ]
    for one, photo in zip(near, expected, strict=True):
        with (
            Image.open(io.BytesIO(base64.b64decode(one["photo_jpeg"]))) as sent,
            Image.open(photo.path) as train,
        ):
            assert dict(sent.getexif()) == {}
            small = np.asarray(train.convert("RGB").resize(sent.size), float)
            assert np.abs(np.asarray(sent, float) - small).mean() < 12


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("?why=perhaps", {"content": b"x"}, "query.why"),
        ("", {"files": {"file": ("a.jpg", b"x", "image/jpeg")}}, "curl --data-binary"),
    ],
)
def test_the_api_says_what_it_does_not_understand(
    served: Served, query: str, options: dict[str, Any], message: str
) -> None:
    answer = httpx.post(f"{served.url}/api/locate{query}", **options)
    assert (answer.status_code, set(answer.json())) == (400, {"error"})
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "must be a photo"),
        (b"no photo", 422, "no photo that can be read"),
        (b"x" * 2_000_001, 413, "2 MB"),
    ],
)
def test_the_api_refuses_what_is_no_photo(
    served: Served, content: bytes, status: int, message: str
) -> None:
    answer = httpx.post(f"{served.url}/api/locate", content=content)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_the_api_refuses_too_many_pixels(served: Served) -> None:
    file = io.BytesIO()
    Image.new("L", (2500, 2500)).save(file, "PNG")
    answer = httpx.post(f"{served.url}/api/locate", content=file.getvalue())
    assert (answer.status_code, "6 megapixels" in answer.json()["error"]) == (422, True)


def test_the_api_is_described_for_people_and_programs(served: Served) -> None:
    page = httpx.get(f"{served.url}/api")
    assert page.status_code == 200
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text)
    assert f"curl --data-binary @photo.jpg {served.url}/api/locate" in page.text
    described = httpx.get(f"{served.url}/api/openapi.json").json()
    assert set(described["paths"]) == {"/api/locate", "/api/model"}
    about = httpx.get(f"{served.url}/api/model").json()
    answer = httpx.post(f"{served.url}/api/locate", content=served.photos[0].read_bytes()).json()
    assert set(answer["province_probabilities"]) == set(about["provinces"])
    why = httpx.post(
        f"{served.url}/api/locate?why=1", content=served.photos[0].read_bytes(), timeout=60
    ).json()["why"]
    for key in [*answer, *why, *why["nearest_train_photos"][0]]:
        assert re.search(rf"<code>[^<]*\b{key}\b", page.text), key


def test_twenty_at_once_are_answered_as_each_alone(served: Served) -> None:
    def ask(path: Path) -> dict[str, Any]:
        answer = httpx.post(f"{served.url}/api/locate", content=path.read_bytes(), timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    photos = served.photos[:20]
    alone = [ask(path) for path in photos]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, photos))
    assert together == alone


def test_the_page_says_why_there_is_no_reason_and_shows_no_old_one(
    home: Path, phases: dict[int, Path], tmp_path: Path
) -> None:
    photo = str(sorted((home / "data/synthetic/photos").rglob("*.jpg"))[1])
    gone = str(tmp_path / "gone.jpg")
    predictor = GeopakPredictor(phases[2], device="cpu")
    for timeout_s in (1e-4, 60):
        asking = Asking(predictor, Limits(timeout_s=timeout_s), tmp_path)
        answer, reason = asyncio.run(asking.located(photo))
        told = asyncio.run(asking.explained(photo))
        # Of the photo before: it goes as the answer comes.
        assert reason == ""
        late = "took longer than 0.0001 seconds"
        assert (late in answer) == (late in told) == (timeout_s < 1)
        assert ("data-answer" in answer) == ("data:image/jpeg" in told) == (timeout_s > 1)
        assert "deleted" in asyncio.run(asking.located(gone))[0]
        assert asyncio.run(asking.explained(gone)) == ""
        assert "data-answer" not in asyncio.run(asking.located(None))[0]
        asking.close()


@pytest.mark.slow
def test_more_than_may_wait_are_told_to_come_back(
    home: Path, phases: dict[int, Path], tmp_path: Path
) -> None:
    url, process = begin(phases[2], tmp_path / "t", "max_waiting=2")
    photo = sorted((home / "data/synthetic/photos").rglob("*.jpg"))[0].read_bytes()
    try:
        with ThreadPoolExecutor(16) as pool:
            answers = list(
                pool.map(
                    lambda _: httpx.post(f"{url}/api/locate?why=true", content=photo, timeout=60),
                    range(16),
                )
            )
        statuses = {a.status_code for a in answers}
        assert statuses == {200, 503}
        assert all("retry-after" in a.headers for a in answers if a.status_code == 503)
        assert httpx.post(f"{url}/api/locate", content=photo).status_code == 200
    finally:
        # However it is ended in good order, no photo is left behind.
        assert list((tmp_path / "t").glob("geopak-app-*"))
        assert end(process) == 0
    assert not list((tmp_path / "t").glob("geopak-app-*"))


def test_it_listens_to_this_machine_alone(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    assert served.url == f"http://127.0.0.1:{port}"
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = {row[1] for row in listening if row[1].endswith(f":{int(port):04X}") and row[3] == "0A"}
    assert own == {f"0100007F:{int(port):04X}"}
    assert httpx.get(served.url, headers={"host": "example.org"}).status_code == 400


def test_no_file_of_the_server_is_readable(served: Served, phases: dict[int, Path]) -> None:
    assert (served.folder.stat().st_mode & 0o777) == 0o700
    for path in ("/etc/passwd", str(phases[2]), str(Path(__file__))):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/../../", "map/../"):
            assert httpx.get(f"{served.url}/{route}{path}").status_code in (400, 403, 404)
        event = {
            "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}],
            "fn_index": 0,
            "session_hash": "abc",
        }
        joined = httpx.post(f"{served.url}/gradio_api/queue/join", json=event)
        assert joined.status_code == 404


def test_an_uploaded_photo_is_kept_without_its_metadata(served: Served) -> None:
    content = with_secret(served.photos[5])
    files = [("files", ("a.jpg", content, "image/jpeg"))]
    (path,) = httpx.post(f"{served.url}/gradio_api/upload", files=files).json()
    assert Path(path).is_relative_to(served.folder)
    shown = httpx.get(f"{served.url}/gradio_api/file={path}")
    assert shown.status_code == 200
    assert SECRET not in shown.content
    assert SECRET not in stored(served.folder)
    with Image.open(io.BytesIO(shown.content)) as image:
        assert dict(image.getexif()) == {}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


def opened(browser: Any, served: Served, **options: Any) -> Any:
    """The page in a window of its own, which fails where it asks another server for anything."""
    page = browser.new_context(**options).new_page()
    page.outside = []
    page.on(
        "request",
        lambda r: r.url.startswith((served.url, "data:", "blob:")) or page.outside.append(r.url),
    )
    page.refused = []
    page.on(
        "console",
        lambda m: "Content Security Policy" in m.text and page.refused.append(m.text),
    )
    page.goto(served.url)
    page.wait_for_selector("#place svg .province", timeout=60_000)
    return page


@pytest.mark.parametrize("screen", [{}, PHONE], ids=["desk", "phone"])
def test_a_photo_is_placed_on_the_map_and_the_error_is_read(
    browser: Any, served: Served, phases: dict[int, Path], screen: dict[str, Any]
) -> None:
    page = opened(browser, served, **screen)
    path = served.photos[7]
    page.locator("#photo input[type=file]").set_input_files(path)
    page.wait_for_selector("#place svg .pin", timeout=60_000)
    answer = GeopakPredictor(phases[2], device="cpu").predict(path)
    shown = json.loads(page.locator("#place .geopak-map").get_attribute("data-answer"))
    # The kept picture is encoded anew.
    assert shown["lat"] == pytest.approx(answer.lat, abs=0.1)
    assert shown["lon"] == pytest.approx(answer.lon, abs=0.1)
    assert page.locator("#place h2").inner_text() == shown["province"]
    assert page.locator("#place .geopak-bars .bar").count() == len(answer.province_probabilities)
    assert page.locator("#place svg .hypothesis").count() == len(answer.hypotheses)
    # A click on the pin's point is no error; typed, one degree of latitude is 111 km.
    pin = page.evaluate(
        """() => { const svg = document.querySelector('#place svg'), d = svg.querySelector('.pin')
        .getAttribute('d').match(/M(\\S+) (\\S+)c/), p = new DOMPoint(+d[1], +d[2]);
        const q = p.matrixTransform(svg.getScreenCTM()); return [q.x, q.y]; }"""
    )
    (page.touchscreen.tap if screen else page.mouse.click)(*pin)
    told = page.locator("#place .told")
    assert float(told.get_attribute("data-km")) < 8
    page.locator("#place .typed").fill(f"{shown['lat'] + 1}, {shown['lon']}")
    page.locator("#place .typed").press("Enter")
    assert float(told.get_attribute("data-km")) == pytest.approx(111.19, abs=0.1)
    page.wait_for_selector("#why .geopak-near img", timeout=60_000)
    assert page.locator("#why .geopak-near figure").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    if screen:
        places = [page.locator(f"#{k}").bounding_box()["y"] for k in ("photo", "place", "why")]
        assert places == sorted(places)
    assert page.outside == page.refused == []
    page.context.close()


PASTED = """async (photo) => {
const content = await (await fetch("data:image/png;base64," + photo)).blob();
await navigator.clipboard.write([new ClipboardItem({"image/png": content})]); }"""


def test_a_photo_is_pasted_and_another_takes_its_place(
    browser: Any, served: Served, phases: dict[int, Path]
) -> None:
    page = opened(browser, served, permissions=["clipboard-read", "clipboard-write"])
    predictor = GeopakPredictor(phases[2], device="cpu")
    reason = ""
    for path in served.photos[10:13]:
        file = io.BytesIO()
        with Image.open(path) as image:
            image.save(file, "PNG")
        page.evaluate(PASTED, base64.b64encode(file.getvalue()).decode())
        if path == served.photos[12]:
            # The button does what the keys do, where no photo is shown.
            page.get_by_label("Remove Image").click()
            page.wait_for_selector("#why figure img", state="detached")
            page.wait_for_selector("#place .geopak-map[data-answer]", state="detached")
            page.get_by_label("Paste from clipboard").click()
        else:
            page.keyboard.press("Control+V")
        answer = predictor.predict(file.getvalue())
        page.wait_for_function(
            """(lat) => { const map = document.querySelector('#place .geopak-map[data-answer]');
            return map && Math.abs(JSON.parse(map.dataset.answer).lat - lat) < 0.1; }""",
            arg=answer.lat, timeout=60_000,
        )  # fmt: skip
        page.wait_for_selector("#why figure img", timeout=60_000)
        page.wait_for_function(
            "(old) => { const i = document.querySelector('#why figure img'); "
            "return i && i.src !== old; }",
            arg=reason, timeout=60_000,
        )  # fmt: skip
        reason = page.locator("#why figure img").first.get_attribute("src")
    # Text goes where text is typed.
    page.evaluate("navigator.clipboard.writeText('31.5, 74.3')")
    page.locator("#place .typed").click()
    page.keyboard.press("Control+V")
    assert page.locator("#place .typed").input_value() == "31.5, 74.3"
    page.context.close()


def test_a_wrong_file_is_refused_in_plain_words_and_the_page_goes_on(
    browser: Any, served: Served, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.jpg"
    wrong.write_bytes(b"no photo")
    page = opened(browser, served)
    page.locator("#photo input[type=file]").set_input_files(wrong)
    page.get_by_text("This is no photo that can be read").wait_for(timeout=20_000)
    assert page.locator("#place svg .pin").count() == 0
    page.locator("#photo input[type=file]").set_input_files(served.photos[1])
    page.wait_for_selector("#place svg .pin", timeout=60_000)
    page.context.close()


def test_many_photos_become_files_to_download(browser: Any, served: Served, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jpg"
    wrong.write_bytes(b"no photo")
    # Whose name would be a program, were it not shown as text.
    wicked = tmp_path / "<img src=x onerror=window.wicked=1>'\"&.jpg"
    wicked.write_bytes(served.photos[4].read_bytes())
    page = opened(browser, served)
    page.get_by_role("tab", name="Many photos").click()
    page.locator("#photos input[type=file]").set_input_files([*served.photos[:4], wicked, wrong])
    page.get_by_text("wrong").first.wait_for(timeout=30_000)
    page.locator("#ask").click()
    page.get_by_text("6 photos, 1 could not be read").wait_for(timeout=60_000)
    assert page.locator("#told tbody tr").count() == 6
    assert "window.wicked" in page.locator("#told tbody tr").nth(4).inner_text()
    contents = {}
    for kind in ("csv", "geojson", "html"):
        with page.expect_download() as download:
            page.locator(f"#download{kind}").click()
        contents[kind] = Path(download.value.path()).read_text(encoding="utf-8")
    assert [line.split(",")[0] for line in contents["csv"].splitlines()[1:]] == [
        *(path.name for path in served.photos[:4]),
        page.locator("#told tbody td").nth(4 * 5).inner_text(), "wrong.jpg",
    ]  # fmt: skip
    assert json.loads(contents["geojson"])["type"] == "FeatureCollection"
    assert contents["html"].count('class="photo"') == 6
    map_page = tmp_path / "map.html"
    map_page.write_text(contents["html"], encoding="utf-8")
    beside = page.context.new_page()
    beside.goto(map_page.as_uri())
    beside.wait_for_load_state("networkidle")
    for shown in (page, beside):
        assert shown.evaluate("window.wicked") is None
        assert shown.locator("img[onerror]").count() == 0
    # More than are allowed together are refused, not cut.
    page.locator("#photos input[type=file]").set_input_files(served.photos[6:9])
    page.get_by_text(served.photos[8].stem).first.wait_for(timeout=30_000)
    page.locator("#ask").click()
    page.get_by_text("These are 9 photos, at most 6 at once").wait_for(timeout=60_000)
    assert page.locator("#told tbody tr").count() == 0
    assert not page.locator("#downloadcsv").is_visible()
    assert page.outside == page.refused == []
    page.context.close()


@pytest.mark.slow
def test_twenty_pages_at_once_each_show_their_own_photo(
    served: Served, phases: dict[int, Path]
) -> None:
    async_api = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    predictor = GeopakPredictor(phases[2], device="cpu")
    photos = served.photos[:20]

    async def one(browser: Any, path: Path, all_open: asyncio.Barrier) -> dict[str, Any]:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(served.url, timeout=300_000)
        await page.wait_for_selector("#place svg .province", timeout=300_000)
        await all_open.wait()
        await page.locator("#photo input[type=file]").set_input_files(path)
        await page.wait_for_selector("#place svg .pin", timeout=300_000)
        await page.wait_for_selector("#why .geopak-near img", timeout=300_000)
        shown = await page.locator("#place .geopak-map").get_attribute("data-answer")
        return json.loads(shown)

    async def run() -> list[dict[str, Any]]:
        async with async_api.async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
            )
            all_open = asyncio.Barrier(len(photos))
            found = await asyncio.gather(*(one(browser, path, all_open) for path in photos))
            await browser.close()
            return found

    # Playwright's own loop of the other tests may be at work in this thread.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(asyncio.run, run()).result()
    for path, shown in zip(photos, found, strict=True):
        # As it is kept.
        answer = predictor.predict(without_metadata(path.read_bytes(), Limits()))
        assert shown["lat"] == pytest.approx(answer.lat, abs=1e-3)
        assert shown["lon"] == pytest.approx(answer.lon, abs=1e-3)

"""The page in a real browser, in front of the real API with a stand-in for the model."""

import asyncio
import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
from support import browser
from support.standin import CARD, StandIn

from lakd_ray.audio import Wave
from lakd_ray.config import ServeConfig
from lakd_ray.inference.results import ModelInfo, ModelPredictions
from lakd_ray.serve.api import ModelRouter, create_app

KEY = "a key that nobody guesses"
WAV = {"mimeType": "audio/wav"}
LISTENS = """
window.announced = [];
window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  violations.push(`${violatedDirective} ${blockedURI}`));
addEventListener("DOMContentLoaded", () => {
  const place = document.querySelector("[role=status]");
  new MutationObserver(() => announced.push(place.textContent)).observe(place, { childList: true });
});
"""
DROP = """([drop, files]) => {
  const dataTransfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    dataTransfer.items.add(new File([bytes], name, { type: "audio/wav" }));
  }
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.querySelector(drop).dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
  }
}"""
FOCUSED = (
    "(({ ariaLabel, labels, innerText }) => ariaLabel ?? labels?.[0]?.innerText ?? innerText)(document.activeElement)"
)
LENGTH = """player => new Promise((done) => {
  if (player.readyState) done(player.duration);
  else player.onloadedmetadata = () => done(player.duration);
})"""
CONTROLS = {
    "button",
    "combobox",
    "textbox",
    "slider",
    "link",
    "DisclosureTriangle",
    "Audio",
    "dialog",
    "table",
    "image",
}


class Ears(StandIn):
    """Loud is anger, soft is sadness, and all of it German."""

    async def info(self) -> ModelInfo:
        told = {"identifiable_languages": ("en", "de"), "corpora": ("emodb",), "dev": {"UR": 0.75, "UR de": 0.5}}
        return CARD.model_copy(update=told)

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        said = await super().predict(waves, language)
        loud = [float(np.sqrt(np.mean(np.square(wave_T)))) > 0.2 for wave_T in waves]
        heard = {} if language else {"language": "de", "language_probability": 0.9}
        found = [
            one.model_copy(
                update={"probabilities": (0.7, 0.15, 0.1, 0.05) if is_loud else (0.05, 0.1, 0.15, 0.7), **heard}
            )
            for one, is_loud in zip(said.predictions, loud, strict=True)
        ]
        return said.model_copy(update={"predictions": tuple(found)})


@contextmanager
def served(model: StandIn, decoders: Any, **limits: Any) -> Iterator[str]:
    """The API and the page on a port of this machine."""
    app = create_app(ModelRouter(model), ServeConfig(**limits), decoders)
    # without lifespan, for the decoders belong to all tests
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error", ws="websockets-sansio")
    server = uvicorn.Server(config)
    with config.bind_socket() as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        while not server.started:  # bound is not yet listening
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def chromium(decoders: Any) -> Iterator[Any]:
    asyncio.run(decoders.warmup())  # not while a page waits; and not later, for Playwright has a loop of its own
    with browser.chromium() as context:
        yield context.browser


class Visit:
    """A page that is open, and all that it did."""

    def __init__(self, page: Any, url: str, model: StandIn):
        self.page, self.url, self.model = page, url, model
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url.replace("ws:", "http:", 1)))
        page.on("console", lambda message: message.type in ("error", "warning") and self._complain(message.text))
        page.on("pageerror", lambda error: self._complain(str(error)))

    def _complain(self, text: str) -> None:
        if not re.search("the server responded with a status of 4", text):  # what the browser says of any refusal
            self.complaints.append(text)

    def choose(self, *files: tuple[str, bytes]) -> None:
        self.page.set_input_files("#files", [{"name": name, "buffer": content, **WAV} for name, content in files])

    def article(self, name: str) -> Any:
        return self.page.get_by_role("article", name=name, exact=True)

    def answered(self, name: str) -> Any:
        article = self.article(name)
        article.locator(".emotion").wait_for()
        return article

    def announced(self) -> list[str]:
        return self.page.evaluate("announced")

    def check(self) -> None:
        assert self.page.evaluate("violations") == []
        assert self.complaints == []
        strangers = [one for one in self.requests if not one.startswith((f"{self.url}/", f"blob:{self.url}/"))]
        assert self.requests and strangers == []


Open = Callable[..., Any]


@pytest.fixture
def visit(chromium: Any, decoders: Any) -> Open:
    """Opens the page of an endpoint; at the end it must have asked no other host and met no trouble."""

    @contextmanager
    def opened(*, model: StandIn | None = None, scripts: str = "", view: Any = None, **limits: Any) -> Iterator[Visit]:
        model = model or Ears()
        with served(model, decoders, **limits) as url:
            context = chromium.new_context(**(view or {}), permissions=["microphone"])
            context.set_default_timeout(60_000)
            try:
                context.add_init_script(LISTENS + scripts)
                visit = Visit(context.new_page(), url, model)
                visit.page.goto(url)
                yield visit
                visit.check()
            finally:
                context.close()

    return opened


@pytest.fixture(scope="session")
def rising(recording: Any) -> bytes:
    """Four seconds that begin soft and end loud."""
    noise = np.random.default_rng(0).standard_normal(64_000) * np.repeat([0.02, 0.3], 32_000)
    buffer = io.BytesIO()
    soundfile.write(buffer, noise.clip(-1, 1), 16_000, format="WAV")
    return buffer.getvalue()


def shares(article: Any) -> list[int]:
    return [int(text.split()[-2]) for text in article.locator(".bars .figure").all_inner_texts()]


def test_what_is_sent_with_the_page(decoders):
    with served(Ears(), decoders) as url, httpx.Client(base_url=url) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        used = set(re.findall(r'(?:href|src)="(page/[^"]+)"', page.text))
        assert {"page/app.js", "page/style.css", "page/icon.svg"} <= used
        for path in ["/", *used, "page/recorder.js"]:
            response = client.get(path)
            assert response.status_code == 200, path
            headers = response.headers
            policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
            assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
            assert "microphone=(self)" in headers["permissions-policy"]
            assert headers["cache-control"] == "no-cache"
            again = client.get(path, headers={"If-None-Match": f'"other", W/{headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
            assert client.head(path).headers["content-length"] == str(len(response.content))
        for path in ("/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py", "/page/"):
            assert client.get(path).status_code == 404
        assert not [path for path in client.get("/openapi.json").json()["paths"] if path == "/" or "page" in path]


def test_nothing_in_the_page_names_another_host():
    for file in files("lakd_ray.serve").joinpath("static").iterdir():
        addresses = set(re.findall(r"\b\w+://[^\s\"'`]+", file.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name


@browser.needed
def test_files_are_answered_in_their_order(visit, rising, recording):
    with visit() as seen:
        seen.choose(("rising <b>.wav", rising), ("soft.wav", recording(0.5, loudness=0.01)))
        first, second = seen.answered("rising <b>.wav"), seen.answered("soft.wav")
        assert seen.page.get_by_role("article").locator("h3").all_inner_texts() == ["rising <b>.wav", "soft.wav"]
        assert first.locator(".emotion").inner_text().split() == ["anger", "70", "%"]
        assert sum(shares(first)) == 100
        assert first.get_by_role("row").filter(has_text="anger").first.inner_text().split() == ["anger", "70", "%"]
        assert "Language: German, heard with 90 %" in first.inner_text()
        assert first.get_by_role("img").get_attribute("aria-label").startswith("Waveform of rising <b>.wav: 0:04.0")
        first.get_by_text("Timeline as a table (3 parts)").click()
        parts = first.locator(".parts tbody tr").all_inner_texts()
        assert [part.replace("\u2013", "-").split() for part in parts] == [
            ["0:00.0-0:02.0", "sadness", "70", "%"],
            ["0:01.0-0:03.0", "anger", "70", "%"],
            ["0:02.0-0:04.0", "anger", "70", "%"],
        ]
        assert first.locator(".lane-label").all_inner_texts() == list(CARD.emotions)
        assert "Only 0.50 s" in second.get_by_role("list", name="Take note").inner_text()
        said = seen.announced()
        assert said[0] == "Sending 2 recordings"
        assert "rising <b>.wav: anger, 70 %. Language: German, heard with 90 %." in said
        assert [text for text in said if text.startswith("soft.wav: sadness, 70 %.") and "Only 0.50 s" in text]


@browser.needed
def test_a_file_is_dropped_and_its_language_told(visit, recording):
    with visit() as seen:
        page = seen.page
        page.get_by_label("Language spoken").select_option(label="English")
        page.evaluate(DROP, ["main", [["dropped.wav", base64.b64encode(recording(1.0)).decode()]]])
        assert "Language: English, as told" in seen.answered("dropped.wav").inner_text()
        assert set(seen.model.told) == {"en"}
        assert page.locator(".drop.over").count() == 0
        page.evaluate(DROP, ["#drop", []])
        assert page.get_by_role("article").count() == 1


@browser.needed
def test_the_card_fills_the_page(visit):
    with visit() as seen:
        page = seen.page
        page.get_by_text("About the model").click()
        page.get_by_text("emodb").wait_for()
        card = page.locator("#card-body").inner_text()
        assert all(words in card for words in ("student", "English and German", "75 %", "Recall, German", "50 %")), card
        options = page.get_by_label("Language spoken").locator("option").all_inner_texts()
        assert options == ["Identify by listening", "English", "German"]
        assert "acted or synthetic speech" in page.locator("main").inner_text()


@browser.needed
def test_a_key_is_asked_for_and_kept_in_memory_alone(visit, recording, monkeypatch):
    monkeypatch.setenv("LAKD_API_KEYS", KEY)
    with visit() as seen:
        page, dialog = seen.page, seen.page.get_by_role("dialog")
        dialog.wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("Give a key").wait_for(state="attached")
        seen.choose(("one.wav", recording(1.0)), ("two.wav", recording(1.0)))
        dialog.get_by_label("Key").fill("not the right one at all")
        page.keyboard.press("Enter")
        dialog.get_by_text("That key was not accepted").wait_for()
        assert page.get_by_label("Key", exact=True).get_attribute("type") == "password"
        assert page.get_by_label("Key", exact=True).input_value() == ""
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        seen.answered("one.wav")
        seen.answered("two.wav")
        page.locator("option", has_text="German").wait_for(state="attached")
        stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert json.loads(stored) == [{}, {}, ""]
        page.get_by_role("button", name="Record", exact=True).click()
        page.get_by_text("sound like").wait_for()
        page.get_by_role("button", name="Discard").click()
        page.reload()
        dialog.wait_for()


@browser.needed
def test_refusals_are_told_in_words_with_what_to_do(visit, recording):
    with visit(max_seconds=2.0, max_upload_mb=0.5) as seen:
        seen.choose(("nonsense.wav", b"nonsense" * 100), ("long.wav", recording(3.0)))
        nonsense, long = seen.article("nonsense.wav"), seen.article("long.wav")
        nonsense.get_by_text("convert it to WAV").wait_for()
        long.get_by_text("The recording is longer than the limit of 2 s.").wait_for()
        assert "Send a shorter part" in long.inner_text()
        assert [text for text in seen.announced() if text.startswith("long.wav: no answer. The recording is longer")]
        again = nonsense.get_by_role("button", name="Try again")
        again.focus()
        seen.page.keyboard.press("Enter")
        again.wait_for()
        assert len([one for one in seen.requests if "/v1/emotion" in one]) == 3


@browser.needed
def test_a_busy_endpoint_is_asked_again(visit, recording):
    with visit() as seen:
        refusals = iter([{"status": 429}, {"status": 503}])

        def busy(route: Any) -> None:
            refusal = next(refusals, None)
            if refusal is None:
                route.continue_()
            else:
                route.fulfill(**refusal, headers={"Retry-After": "0"}, json={"error": "busy"})

        seen.page.route("**/v1/emotion?*", busy)
        seen.choose(("one.wav", recording(1.0)))
        seen.answered("one.wav")
        seen.complaints = [text for text in seen.complaints if "503" not in text]


@browser.needed
def test_an_endpoint_that_is_gone(visit, recording):
    with visit() as seen:
        seen.page.route("**/v1/emotion?*", lambda route: route.abort())
        seen.choose(("one.wav", recording(1.0)))
        seen.article("one.wav").get_by_text("The endpoint did not answer.").wait_for()
        seen.complaints = [text for text in seen.complaints if "ERR_FAILED" not in text]


@browser.needed
def test_with_the_keyboard_alone(visit, rising):
    def tab_to(name: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if name in page.evaluate(FOCUSED):
                assert page.evaluate("document.activeElement.matches(':focus-visible')")
                return
        pytest.fail(f"Tab does not lead to {name}")

    with visit() as seen:
        page, choosers = seen.page, []
        # listened for from now on: a listener that comes with the key press comes too late at times
        page.on("filechooser", lambda chooser: choosers.extend([chooser]))
        tab_to("Choose files")
        page.keyboard.press("Enter")
        while not choosers:  # the test's own timeout ends it
            page.wait_for_timeout(20)
        choosers[0].set_files([{"name": "rising.wav", "buffer": rising, **WAV}])
        article = seen.answered("rising.wav")
        cursor, player = article.get_by_role("slider", name="Position in rising.wav"), article.locator("audio")
        tab_to("Position in rising.wav")
        positions = []
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home"):
            page.keyboard.press(key)
            positions.append((cursor.get_attribute("aria-valuetext"), player.evaluate("player => player.currentTime")))
        assert positions == [
            ("0:01.5 of 0:04.0, anger 70 %", 1.5),
            ("0:02.5 of 0:04.0, anger 70 %", 2.5),
            ("0:01.5 of 0:04.0, anger 70 %", 1.5),
            ("0:04.0 of 0:04.0, anger 70 %", 4),
            ("0:00.0 of 0:04.0, sadness 70 %", 0),
        ]
        page.keyboard.press("Space")
        article.locator("[role=slider]:not([aria-valuenow='0.0'])").wait_for()
        page.keyboard.press("Space")
        assert player.evaluate("({ paused, currentTime }) => paused && currentTime > 0")
        tab_to("Timeline as a table")
        page.keyboard.press("Enter")
        article.get_by_role("cell", name="sadness").wait_for()
        page.keyboard.press("Shift+Tab")
        article.get_by_role("button", name="Remove rising.wav").press("Enter")
        article.wait_for(state="detached")
        assert page.evaluate("document.activeElement.id") == "choose"


@browser.needed
def test_a_click_moves_cursor_and_player(visit, rising):
    with visit() as seen:
        seen.choose(("rising.wav", rising))
        article = seen.answered("rising.wav")
        cursor = article.get_by_role("slider")
        room = cursor.bounding_box()
        cursor.click(position={"x": room["width"] / 4, "y": 5})
        assert float(cursor.get_attribute("aria-valuenow")) == pytest.approx(1.0, abs=0.1)
        assert article.locator("audio").evaluate("player => player.currentTime") == pytest.approx(1.0, abs=0.1)


@browser.needed
def test_a_recording_is_answered_while_it_is_made_and_at_its_end(visit):
    with visit() as seen:
        page = seen.page
        page.get_by_role("button", name="Record", exact=True).press("Enter")
        page.get_by_text(re.compile("The last [12] s sound like: (anger|sadness) 70 %")).wait_for()
        assert sum(shares(page.get_by_role("region", name="Recording"))) == 100
        page.get_by_text("The last 3 s sound like").wait_for()
        page.get_by_role("button", name="Stop recording").press("Enter")
        article = seen.answered("Recording 1")
        assert page.get_by_role("region", name="Recording").count() == 0
        assert sum(shares(article)) == 100
        length = article.locator("audio").evaluate(LENGTH)
        assert length >= 3
        assert f"0:0{length:.1f}" in article.inner_text()
        assert int(re.search(r"\((\d+) parts\)", article.inner_text())[1]) >= 3
        said = seen.announced()
        assert said[0] == "Recording"
        assert [text for text in said if text.startswith("So far: ")]
        assert said[-1].startswith("Recording 1: ")
        assert not [one for one in seen.requests if "/v1/emotion" in one]
        page.get_by_role("button", name="Record", exact=True).click()
        page.get_by_role("button", name="Discard").click()
        page.get_by_role("button", name="Record", exact=True).wait_for()
        assert page.get_by_role("article").count() == 1


@browser.needed
def test_a_recording_without_a_stream_is_sent_at_its_end(visit):
    with visit(max_streams=0) as seen:
        page = seen.page
        page.get_by_role("button", name="Record", exact=True).click()
        page.locator("#live-note", has_text="0 streams are open already").wait_for()
        page.locator("#elapsed", has_text="0:01").wait_for()
        page.get_by_role("button", name="Stop recording").click()
        assert "Timeline as a table" in seen.answered("Recording 1").inner_text()
        assert [one for one in seen.requests if "/v1/emotion" in one]


@browser.needed
@pytest.mark.parametrize(
    ("fault", "words"),
    [("NotAllowedError", "Allow it in the page's settings"), ("NotFoundError", "Connect one, or choose a file.")],
)
def test_no_microphone(visit, fault, words):
    script = f"navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', '{fault}'));"
    with visit(scripts=script) as seen:
        seen.page.get_by_role("button", name="Record", exact=True).click()
        seen.page.locator("#record-error", has_text=words).wait_for()
        assert words in seen.announced()[-1]


@browser.needed
def test_a_format_that_the_browser_cannot_decode_is_answered_without_waveform(visit, recording):
    script = "OfflineAudioContext.prototype.decodeAudioData = () => Promise.reject(new Error('unknown'));"
    with visit(scripts=script) as seen:
        seen.choose(("odd.amr", recording(4.0)))
        article = seen.answered("odd.amr")
        assert "This browser cannot play or draw this format" in article.inner_text()
        assert (article.locator("canvas").count(), article.locator("audio").count()) == (0, 0)
        assert "Timeline as a table (3 parts)" in article.inner_text()


@browser.needed
def test_on_a_phone_nothing_is_wider_than_the_screen(visit, rising):
    with visit(view={"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}) as seen:
        seen.choose((f"{'a-very-long-name' * 8}.wav", rising))
        seen.page.locator(".emotion").wait_for()
        seen.page.get_by_text("About the model").tap()
        seen.page.get_by_text("Timeline as a table").tap()
        seen.page.get_by_role("button", name="Record", exact=True).tap()
        seen.page.get_by_text("sound like").wait_for()
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 375
        small = """[...document.querySelectorAll("button, select")].filter((one) => one.checkVisibility())
            .map((one) => one.getBoundingClientRect()).filter(({ width, height }) => width < 24 || height < 24)"""
        assert seen.page.evaluate(small) == []
        seen.page.get_by_role("button", name="Discard").tap()


@browser.needed
def test_everything_that_is_used_has_a_name(visit, rising):
    with visit() as seen:
        seen.choose(("rising.wav", rising), ("nonsense.wav", b"nonsense" * 100))
        seen.answered("rising.wav")
        seen.article("nonsense.wav").get_by_role("button", name="Try again").wait_for()
        session = seen.page.context.new_cdp_session(seen.page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        shown = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]]
        found = {role for role, _ in shown}
        assert {"button", "combobox", "slider", "link", "DisclosureTriangle", "Audio", "table", "image"} <= found, found
        assert [role for role, name in shown if role in CONTROLS and not name.strip()] == []
        levels = seen.page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((one) => +one.localName[1])")
        assert levels[0] == 1
        assert all(below - above <= 1 for above, below in pairwise(levels))

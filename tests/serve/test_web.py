"""The web page in a real browser: files are sent to the real API in front of a fake model, and results are shown."""

import base64
import json
import re
from importlib.resources import files
from typing import Any

import httpx
from support import browser
from support.fake_model import MODEL_INFO
from support.local_endpoint import running_api
from support.web_page import LoudnessModel, percentages

KEY = "a key that is hard to guess"
DROP_FILES = """([target, files]) => {
  const dataTransfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    dataTransfer.items.add(new File([bytes], name, { type: "audio/wav" }));
  }
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const event = new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true });
    document.querySelector(target).dispatchEvent(event);
  }
}"""


def test_page_is_served_with_security_and_cache_headers(decoders):
    with running_api(LoudnessModel(), decoders) as url, httpx.Client(base_url=url) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        linked = set(re.findall(r'(?:href|src)="(page/[^"]+)"', page.text))
        assert {"page/app.js", "page/base.css", "page/icon.svg"} <= linked
        for path in ["/", *linked, "page/recorder.js"]:
            response = client.get(path)
            assert response.status_code == 200, path
            headers = response.headers
            policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
            assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
            assert "microphone=(self)" in headers["permissions-policy"]
            assert headers["cache-control"] == "no-cache"
            cached = client.get(path, headers={"If-None-Match": f'"other", W/{headers["etag"]}'})
            assert (cached.status_code, cached.content) == (304, b"")
            assert client.head(path).headers["content-length"] == str(len(response.content))
        for path in ("/page/index.html", "/page/../web.py", "/page/%2e%2e/web.py", "/page/"):
            assert client.get(path).status_code == 404
        assert not [path for path in client.get("/openapi.json").json()["paths"] if path == "/" or "page" in path]


def test_static_files_name_no_other_host():
    static = list(files("lakd_ray.serve").joinpath("static").iterdir())
    assert len(static) > 10
    for file in static:
        urls = set(re.findall(r"\b\w+://[^\s\"'`]+", file.read_text()))
        assert urls <= {"http://www.w3.org/2000/svg"}, file.name


@browser.needed
def test_results_are_listed_in_the_order_of_the_files(open_page, rising, recording):
    with open_page() as visit:
        visit.choose(("rising <b>.wav", rising), ("soft.wav", recording(0.5, loudness=0.01)))
        first, second = visit.wait_for_result("rising <b>.wav"), visit.wait_for_result("soft.wav")
        assert visit.page.get_by_role("article").locator("h3").all_inner_texts() == ["rising <b>.wav", "soft.wav"]
        assert first.locator(".emotion").inner_text().split() == ["anger", "70", "%"]
        assert sum(percentages(first)) == 100
        assert first.get_by_role("row").filter(has_text="anger").first.inner_text().split() == ["anger", "70", "%"]
        assert "Language: German (identified, 90 %)" in first.inner_text()
        assert first.get_by_role("img").get_attribute("aria-label").startswith("Waveform of rising <b>.wav: 0:04.0")
        first.get_by_text("Timeline as a table (3 segments)").click()
        rows = first.locator(".parts tbody tr").all_inner_texts()
        assert [row.replace("\u2013", "-").split() for row in rows] == [
            ["0:00.0-0:02.0", "sadness", "70", "%"],
            ["0:01.0-0:03.0", "anger", "70", "%"],
            ["0:02.0-0:04.0", "anger", "70", "%"],
        ]
        assert first.locator(".lane-label").all_inner_texts() == list(MODEL_INFO.emotions)
        assert "0.50 s" in second.get_by_role("list", name="Warnings").inner_text()
        announced = visit.announced()
        assert announced[0] == "Sending 2 recordings"
        assert "rising <b>.wav: anger, 70 %. Language: German (identified, 90 %)." in announced
        assert [text for text in announced if text.startswith("soft.wav: sadness, 70 %.") and "0.50 s" in text]


@browser.needed
def test_dropped_file_is_sent_with_the_selected_language(open_page, recording):
    with open_page() as visit:
        page = visit.page
        page.get_by_label("Language spoken").select_option(label="English")
        page.evaluate(DROP_FILES, ["main", [["dropped.wav", base64.b64encode(recording(1.0)).decode()]]])
        assert "Language: English (specified)" in visit.wait_for_result("dropped.wav").inner_text()
        assert set(visit.model.languages) == {"en"}
        assert page.locator(".drop.over").count() == 0
        page.evaluate(DROP_FILES, ["#drop", []])
        assert page.get_by_role("article").count() == 1


@browser.needed
def test_page_shows_the_served_model(open_page):
    with open_page() as visit:
        page = visit.page
        page.get_by_text("About the model").click()
        page.get_by_text("emodb").wait_for()
        info = page.locator("#model-info-body").inner_text()
        assert all(text in info for text in ("student", "English and German", "75 %", "Recall, German", "50 %")), info
        options = page.get_by_label("Language spoken").locator("option").all_inner_texts()
        assert options == ["Identify automatically", "English", "German"]
        assert page.locator("#lead").inner_text().endswith("anger, happiness, neutral, or sadness.")
        about = " ".join(page.locator("main").inner_text().split())
        assert "acted or synthetic speech" in about


@browser.needed
def test_page_prompts_for_a_key_and_stores_it_only_in_memory(open_page, recording, monkeypatch):
    monkeypatch.setenv("LAKD_API_KEYS", KEY)
    with open_page() as visit:
        page, dialog = visit.page, visit.page.get_by_role("dialog")
        dialog.wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("Enter an API key").wait_for(state="attached")
        visit.choose(("one.wav", recording(1.0)), ("two.wav", recording(1.0)))
        dialog.get_by_label("API key").fill("an incorrect but long key")
        page.keyboard.press("Enter")
        dialog.get_by_text("rejected that key").wait_for()
        assert page.get_by_label("API key", exact=True).get_attribute("type") == "password"
        assert page.get_by_label("API key", exact=True).input_value() == ""
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        visit.wait_for_result("one.wav")
        visit.wait_for_result("two.wav")
        page.locator("option", has_text="German").wait_for(state="attached")
        stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert json.loads(stored) == [{}, {}, ""]
        page.get_by_role("button", name="Record", exact=True).click()
        page.get_by_text(re.compile("Last [123] s: ")).wait_for()
        page.get_by_role("button", name="Discard").click()
        page.reload()
        dialog.wait_for()


@browser.needed
def test_rejected_files_show_the_reason_and_advice(open_page, recording):
    with open_page(max_seconds=2.0, max_upload_mb=0.5) as visit:
        visit.choose(("invalid.wav", b"invalid!" * 100), ("long.wav", recording(3.0)))
        invalid, long = visit.article("invalid.wav"), visit.article("long.wav")
        invalid.get_by_text("convert it to WAV").wait_for()
        long.get_by_text("The recording is longer than the limit of 2 s").wait_for()
        assert "Send a shorter part" in long.inner_text()
        assert [text for text in visit.announced() if text.startswith("long.wav: no result. The recording is longer")]
        retry = invalid.get_by_role("button", name="Try again")
        retry.focus()
        visit.page.keyboard.press("Enter")
        retry.wait_for()
        assert len(visit.prediction_requests()) == 3


@browser.needed
def test_busy_endpoint_is_retried(open_page, recording):
    with open_page() as visit:
        errors = iter([{"status": 429}, {"status": 503}])

        def respond(route: Any) -> None:
            error = next(errors, None)
            if error is None:
                route.continue_()
            else:
                route.fulfill(**error, headers={"Retry-After": "0"}, json={"error": "busy"})

        visit.page.route("**/v1/emotion?*", respond)
        visit.choose(("one.wav", recording(1.0)))
        visit.wait_for_result("one.wav")
        visit.errors = [text for text in visit.errors if "503" not in text]


@browser.needed
def test_unreachable_endpoint_is_reported(open_page, recording):
    with open_page() as visit:
        visit.page.route("**/v1/emotion?*", lambda route: route.abort())
        visit.choose(("one.wav", recording(1.0)))
        visit.article("one.wav").get_by_text("The endpoint did not respond.").wait_for()
        visit.errors = [text for text in visit.errors if "ERR_FAILED" not in text]


@browser.needed
def test_file_that_the_browser_cannot_decode_has_a_result_without_waveform(open_page, recording):
    script = "OfflineAudioContext.prototype.decodeAudioData = () => Promise.reject(new Error('unknown'));"
    with open_page(script=script) as visit:
        visit.choose(("unknown.amr", recording(4.0)))
        article = visit.wait_for_result("unknown.amr")
        assert "This browser cannot play this format" in article.inner_text()
        assert (article.locator("canvas").count(), article.locator("audio").count()) == (0, 0)
        assert "Timeline as a table (3 segments)" in article.inner_text()

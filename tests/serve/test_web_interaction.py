"""The web page with keyboard, pointer, microphone, touch screen and screen reader, in a real browser."""

import re
from itertools import pairwise

import pytest
from support import browser
from support.web_page import percentages

FOCUSED_NAME = (
    "(({ ariaLabel, labels, innerText }) => ariaLabel ?? labels?.[0]?.innerText ?? innerText)(document.activeElement)"
)
DURATION = """player => new Promise((resolve) => {
  if (player.readyState) resolve(player.duration);
  else player.onloadedmetadata = () => resolve(player.duration);
})"""
SMALL_CONTROLS = """[...document.querySelectorAll("button, select")].filter((control) => control.checkVisibility())
    .map((control) => control.getBoundingClientRect()).filter(({ width, height }) => width < 24 || height < 24)"""
ROLES_WITH_NAME = {
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


@browser.needed
def test_page_works_with_the_keyboard_alone(open_page, rising):
    def tab_to(name: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if name in page.evaluate(FOCUSED_NAME):
                assert page.evaluate("document.activeElement.matches(':focus-visible')")
                return
        pytest.fail(f"Tab does not reach {name}")

    with open_page() as visit:
        page, choosers = visit.page, []
        # registered before the key press, because the event can be faster than `expect_file_chooser`
        page.on("filechooser", lambda chooser: choosers.extend([chooser]))
        tab_to("Choose files")
        page.keyboard.press("Enter")
        while not choosers:  # limited by the timeout of the test
            page.wait_for_timeout(20)
        choosers[0].set_files([{"name": "rising.wav", "buffer": rising, "mimeType": "audio/wav"}])
        article = visit.wait_for_result("rising.wav")
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
def test_click_moves_cursor_and_player(open_page, rising):
    with open_page() as visit:
        visit.choose(("rising.wav", rising))
        article = visit.wait_for_result("rising.wav")
        cursor = article.get_by_role("slider")
        cursor.click(position={"x": cursor.bounding_box()["width"] / 4, "y": 5})
        assert float(cursor.get_attribute("aria-valuenow")) == pytest.approx(1.0, abs=0.1)
        assert article.locator("audio").evaluate("player => player.currentTime") == pytest.approx(1.0, abs=0.1)


@browser.needed
def test_recording_has_rolling_and_final_results(open_page):
    with open_page() as visit:
        page = visit.page
        page.get_by_role("button", name="Record", exact=True).press("Enter")
        page.get_by_text(re.compile("Last [12] s: (anger|sadness) 70 %")).wait_for()
        assert sum(percentages(page.get_by_role("region", name="Recording"))) == 100
        page.get_by_text("Last 3 s: ").wait_for()
        page.get_by_role("button", name="Stop recording").press("Enter")
        article = visit.wait_for_result("Recording 1")
        assert page.get_by_role("region", name="Recording").count() == 0
        assert sum(percentages(article)) == 100
        duration = article.locator("audio").evaluate(DURATION)
        assert duration >= 3
        assert f"0:0{duration:.1f}" in article.inner_text()
        assert int(re.search(r"\((\d+) segments\)", article.inner_text())[1]) >= 3
        announced = visit.announced()
        assert announced[0] == "Recording"
        assert [text for text in announced if text.startswith("So far: ")]
        assert announced[-1].startswith("Recording 1: ")
        assert not visit.prediction_requests()
        page.get_by_role("button", name="Record", exact=True).click()
        page.get_by_role("button", name="Discard").click()
        page.get_by_role("button", name="Record", exact=True).wait_for()
        assert page.get_by_role("article").count() == 1


@browser.needed
def test_recording_without_a_stream_is_sent_at_its_end(open_page):
    with open_page(max_streams=0) as visit:
        page = visit.page
        page.get_by_role("button", name="Record", exact=True).click()
        page.locator("#live-note", has_text="0 streams").wait_for()
        page.locator("#elapsed", has_text="0:01").wait_for()
        page.get_by_role("button", name="Stop recording").click()
        assert "Timeline as a table" in visit.wait_for_result("Recording 1").inner_text()
        assert visit.prediction_requests()


@browser.needed
@pytest.mark.parametrize(
    ("error", "message"),
    [("NotAllowedError", "Allow it in the page's settings"), ("NotFoundError", "Connect one, or choose a file.")],
)
def test_unavailable_microphone_is_reported(open_page, error, message):
    script = f"navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', '{error}'));"
    with open_page(script=script) as visit:
        visit.page.get_by_role("button", name="Record", exact=True).click()
        visit.page.locator("#record-error", has_text=message).wait_for()
        assert message in visit.announced()[-1]


@browser.needed
def test_page_fits_the_width_of_a_phone(open_page, rising):
    phone = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}
    with open_page(context_options=phone) as visit:
        visit.choose((f"{'a-very-long-name' * 8}.wav", rising))
        visit.page.locator(".emotion").wait_for()
        visit.page.get_by_text("About the model").tap()
        visit.page.get_by_text("Timeline as a table").tap()
        visit.page.get_by_role("button", name="Record", exact=True).tap()
        visit.page.get_by_text(re.compile("Last [123] s: ")).wait_for()
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 375
        assert visit.page.evaluate(SMALL_CONTROLS) == []
        visit.page.get_by_role("button", name="Discard").tap()


@browser.needed
def test_controls_have_names_for_screen_readers(open_page, rising):
    with open_page() as visit:
        visit.choose(("rising.wav", rising), ("invalid.wav", b"invalid!" * 100))
        visit.wait_for_result("rising.wav")
        visit.article("invalid.wav").get_by_role("button", name="Try again").wait_for()
        session = visit.page.context.new_cdp_session(visit.page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        exposed = [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]
        ]
        roles = {role for role, _ in exposed}
        expected = {"button", "combobox", "slider", "link", "DisclosureTriangle", "Audio", "table", "image"}
        assert expected <= roles, roles
        assert [role for role, name in exposed if role in ROLES_WITH_NAME and not name.strip()] == []
        levels = visit.page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((title) => +title.localName[1])")
        assert levels[0] == 1
        assert all(below - above <= 1 for above, below in pairwise(levels))

"""The study opened by optuna-dashboard, by the command that docs/how-to/search.md gives, in a real browser."""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from support import browser
from support.ray_cluster import free_port
from test_study import SPACE, run_trial, study


@browser.needed
@pytest.mark.timeout(120)
def test_the_dashboard_shows_the_search(tmp_path: Path) -> None:
    search = study(tmp_path, trials=8, space=SPACE, sampler="random")
    numbers = [run_trial(search, [0.3 + 0.05 * index, 0.4 + 0.05 * index])[0] for index in range(6)]
    number, _ = search.next_trial()
    search.fail_trial(number, "out of memory")
    search.close()
    url = f"http://127.0.0.1:{free_port()}"
    program, database = Path(sys.executable).with_name("optuna-dashboard"), tmp_path / "s/tune/study.db"
    command = [str(program), f"sqlite:///{database}", "--port", url.rpartition(":")[2]]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as dashboard:
        try:
            wait(url, dashboard, tmp_path / "log")
            with browser.chromium() as context:
                page = context.new_page()
                page.goto(url)
                page.get_by_text("1. s").click()
                page.get_by_text("Hyperparameter Importance").first.wait_for()
                page.get_by_text("distill.mtkd.weighting").first.wait_for()
                page.goto(f"{page.url.rstrip('/')}/trials")
                page.get_by_text("7 Trials").wait_for()
                shown = page.inner_text("body").split("Best Trial")[0].split()
                assert shown.count("Complete") == len(numbers)
                page.get_by_text("Fail", exact=True).click()
                page.get_by_text("out of memory").wait_for()
        finally:
            dashboard.terminate()


def wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(url, timeout=5).status_code < 400:
                return
        except httpx.HTTPError:
            pass
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)

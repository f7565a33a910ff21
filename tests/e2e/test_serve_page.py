"""The service's page in a real browser: a ranking unfolds, an error is shown, at both widths and in both themes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed; '.[serve]' brings it")

import uvicorn
from chromium import NEEDS_CHROMIUM, start_chromium
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from r1ranker.ranking.ranker import Ranker
from r1ranker.serving.app import create_app
from r1ranker.serving.service import Service

pytestmark = NEEDS_CHROMIUM
HOSTILE = "<img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def address(tiny_model: str) -> Iterator[str]:
    ranker = Ranker.from_pretrained(
        tiny_model, "iterative", "candidates", think=False, answer_style="label", max_tokens=8
    )
    app = create_app(Service(ranker, "tiny", "Passage-9", keys=frozenset(["secret"])))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide, light", "narrow, dark"])
def browser(request: pytest.FixtureRequest, address: str, tmp_path: Path) -> Iterator[Chrome]:
    width, theme = request.param
    with start_chromium(tmp_path) as driver:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        features = [{"name": "prefers-color-scheme", "value": theme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get(address)
        yield driver


def status(browser: Chrome, *beginnings: str) -> str:
    """What is said, once it begins so."""

    def said(_: Any) -> str | None:
        text = browser.find_element(By.ID, "status").text
        return text if text.startswith(beginnings) else None

    found: str = WebDriverWait(browser, 60).until(said)
    return found


def shown(browser: Chrome) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#ranking li')].map((entry) => entry.textContent)"
    )
    return found


def test_a_ranking_is_made_and_an_error_is_shown(browser: Chrome) -> None:
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browser.find_element(By.ID, "rank").click()
    assert status(browser, "no valid").startswith("no valid API key")
    browser.find_element(By.CSS_SELECTOR, "details summary").click()
    browser.find_element(By.ID, "key").send_keys("secret")
    candidates = browser.find_element(By.ID, "candidates")
    candidates.send_keys(Keys.CONTROL, Keys.END)
    candidates.send_keys(f"\n{HOSTILE}")
    browser.find_element(By.ID, "rank").send_keys(Keys.ENTER)
    status(browser, "Done: ")
    entries = shown(browser)
    assert len(entries) == 5
    assert sum("out in round" in entry for entry in entries) == 4
    assert any(HOSTILE in entry for entry in entries)
    assert browser.title == "r1ranker"  # what a candidate holds is never run
    assert "4 calls" in browser.find_element(By.ID, "cost").text
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    curl = browser.find_element(By.ID, "curl").get_attribute("textContent")
    assert "secret" not in curl
    assert "/v1/rank -H 'Authorization: Bearer KEY'" in curl

    Select(browser.find_element(By.ID, "example")).select_by_value("films")
    assert browser.find_element(By.ID, "request-label").text.startswith("History")
    Select(browser.find_element(By.ID, "strategy")).select_by_value("logits")
    browser.find_element(By.ID, "rank").click()
    WebDriverWait(browser, 60).until(lambda _: ["%" in entry for entry in shown(browser)] == [True] * 5)
    dark = browser.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    every = browser.execute_script(
        "return [...document.querySelectorAll('input, select, textarea')].filter((one) => !one.labels.length).map((one) => one.id)"
    )
    assert every == []
    # the refused request is the only thing that the console has to say
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("401" in message or "favicon" in message for message in severe), severe

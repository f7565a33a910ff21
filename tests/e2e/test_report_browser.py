"""The report in a real browser: charts are drawn, filters filter, nothing overflows at desktop and phone width."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import NEEDS_CHROMIUM, start_chromium
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from r1ranker.report import write_report

pytestmark = NEEDS_CHROMIUM
WIDTHS = (1280, 390)
HOSTILE = "<img src=x onerror=document.title='run'></script><script>document.title='run'</script>"
LONG = "a_name_without_any_place_to_break_it_" * 4
TASKS = {"Rec-Movie": 20, "Passage-5": 5}
QUERIES = 8

DRAWN = """
const drawn = [];
for (const figure of document.querySelectorAll("figure")) {
  if (figure.hidden) continue;
  const svg = figure.querySelector("svg.main-svg").getBoundingClientRect();
  const marks = [...figure.querySelectorAll(".scatterlayer path.js-line, .scatterlayer path.point, .barlayer .point path, .heatmaplayer image, .scatterlayer path.js-fill")];
  const seen = marks.map((mark) => mark.getBoundingClientRect()).filter((box) => box.width + box.height > 1);
  drawn.push([figure.id, svg.width * svg.height, seen.length, figure.querySelector(".plot").data.length]);
}
return drawn;
"""
"""id, area of the chart, number of lines, points, bars and images that can be seen, number of traces"""


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean * 0.8, "high": mean * 1.1}


def ranked(rng: random.Random, size: int, eliminated: bool) -> dict[str, Any]:
    shown = [f"item {number} {HOSTILE}" for number in rng.sample(range(100), size)]
    ranking = rng.sample(shown, size)
    return {
        "query": f"query {HOSTILE} {LONG}",
        "candidates": shown,
        "positive": rng.choice(shown),
        "ranking": ranking,
        "out_in_round": {name: place for place, name in enumerate(reversed(ranking[1:]), 1)} if eliminated else {},
        "thoughts": [f"thought {HOSTILE} {LONG}"] * (size - 1 if eliminated else 1),
    }


def result(model: str, strategy: str, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    names = ("mrr", "hit@5", "hit@10", "ndcg@5", "ndcg@10")
    figures: dict[str, Any] = {
        "metrics": {name: interval(0.3 + seed / 10) for name in names},
        "strict": {name: interval(0.25) for name in names},
        "baselines": {"random": {name: interval(0.2) for name in names}},
        "valid_answer_rate": 0.9,
    }
    return {
        "model": model,
        "data": LONG,
        "settings": {"strategy": strategy},
        "pooled": figures,
        "tasks": {
            task: figures | {"rankings": [ranked(rng, size, strategy == "iterative") for _ in range(QUERIES)]}
            for task, size in TASKS.items()
        },
    }


def lines(steps: int) -> list[dict[str, float]]:
    rng = random.Random(steps)
    names = ("reward/score/mean", "reward/task/mean", "actor/kl_loss", "actor/entropy", "response_length/mean")
    times = ("timing_s/gen", "timing_s/update_actor", "timing_s/sync_weights")
    return [
        {"step": step, **{name: rng.random() for name in (*names, *times, *validated)}}
        for step in range(steps)
        for validated in [[f"val-core/{task}/reward/mean" for task in TASKS] if step % 10 == 0 else []]
    ]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page with two runs and two results, and one with an empty run and a result without rankings."""
    directory = tmp_path_factory.mktemp("report")
    for name, steps in (("first", 60), (f"second {LONG}", 20), ("empty", 0)):
        (directory / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines(steps))
        (directory / name / "metrics.jsonl").write_text(text, encoding="utf-8")
    for name, content in {
        "a": result(f"models/{HOSTILE}", "iterative", 1),
        "b": result(f"models/{LONG}", "direct", 2),
        "bare": {"model": "bare", "tasks": {"Rec-Movie": {"queries": 3}}},
    }.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    inputs = {"full": ["first", f"second {LONG}", "a.json", "b.json"], "bare": ["empty", "bare.json"]}
    for name, given in inputs.items():
        write_report([str(directory / part) for part in given], str(directory / f"{name}.html"))
    return {name: directory / f"{name}.html" for name in inputs}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Headless Chromium with a profile of its own."""
    chrome = start_chromium(tmp_path_factory.mktemp("profile"))
    yield chrome
    chrome.quit()


def show(browser: Chrome, page: Path, width: int) -> None:
    """Open a page in a window of that width, and wait until it has drawn."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    wait(browser)


def wait(browser: Chrome) -> None:
    until = time.monotonic() + 60
    while browser.execute_script("return document.documentElement.dataset.ready") != "yes":
        assert time.monotonic() < until, f"the page has not drawn: {browser.get_log('browser')}"
        time.sleep(0.05)


def choose(browser: Chrome, menu: str, text: str) -> None:
    Select(browser.find_element(By.ID, menu)).select_by_visible_text(text)
    wait(browser)


def overflow(browser: Chrome) -> int:
    """Pixels by which the page is wider than the window."""
    return browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")


def seen(browser: Chrome, selector: str) -> list[str]:
    """Text of the elements that can be seen."""
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, selector) if found.is_displayed()]


def data_of(browser: Chrome, section: str) -> list[list[dict[str, Any]]]:
    """The traces of each chart of a section that can be seen."""
    return browser.execute_script(
        "return [...document.querySelectorAll(`figure[id^='${arguments[0]}-']`)].filter((figure) => !figure.hidden"
        " && !figure.querySelector('.plot').hidden).map((figure) => figure.querySelector('.plot').data)",
        section,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_every_chart_is_drawn_without_errors_or_requests(browser: Chrome, pages: dict[str, Path], width: int) -> None:
    show(browser, pages["full"], width)
    drawn = browser.execute_script(DRAWN)
    sections = {identity.rsplit("-", 1)[0] for identity, *_ in drawn}
    assert sections == {"results", "pool_size", "position", "rounds", "training", "validation", "time"}
    for identity, area, marks, traces in drawn:
        assert area > 10_000, identity
        assert marks >= traces > 0, identity
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.title == "Ranking report"  # what the texts try to run has not run
    assert "item" in browser.execute_script("return document.querySelector('#examples mark').textContent")
    assert "</script>" in browser.execute_script("return document.querySelector('#examples mark').textContent")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_never_wider_than_the_window(browser: Chrome, pages: dict[str, Path], width: int) -> None:
    show(browser, pages["full"], width)
    assert overflow(browser) == 0
    browser.execute_script("for (const details of document.querySelectorAll('details')) details.open = true")
    assert overflow(browser) == 0
    wide = "return [...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
    assert browser.execute_script(wide) > 0  # tables scroll inside their boxes
    choose(browser, "task", "Rec-Movie")
    assert overflow(browser) == 0


def test_charts_follow_the_width_of_the_window(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["full"], 1280)
    width = "return document.querySelector('#pool_size-0 svg.main-svg').getBoundingClientRect().width"
    wide = browser.execute_script(width)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    until = time.monotonic() + 30
    while browser.execute_script(width) > 390:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert wide > 1000
    assert overflow(browser) == 0


def test_the_task_filters_charts_tables_and_examples(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["full"], 1280)
    assert seen(browser, "#results figcaption") == ["All tasks", *TASKS]
    assert sum(map(sum, data_of(browser, "position")[0][0]["z"])) == QUERIES * len(TASKS)
    choose(browser, "task", "Passage-5")
    assert seen(browser, "#results figcaption") == ["Passage-5"]
    assert seen(browser, "#validation figcaption") == ["Passage-5"]
    assert seen(browser, ".comparison h3") == ["Passage-5"]
    assert seen(browser, "#overview thead th") == ["MRR x 100", "Passage-5"]
    assert seen(browser, "#examples > details > summary") == ["Passage-5"]
    examples = seen(browser, ".example > summary")
    assert len(examples) == 2 * 6
    assert all("of 5" in summary for summary in examples)
    assert sum(map(sum, data_of(browser, "position")[0][0]["z"])) == QUERIES
    assert [trace["x"] for trace in data_of(browser, "pool_size")[0]] == [[5]] * 3
    assert data_of(browser, "rounds")[0][0]["x"][-1] == "kept"
    assert all(marks >= traces > 0 for _, _, marks, traces in browser.execute_script(DRAWN))
    choose(browser, "task", "all tasks")
    assert seen(browser, "#results figcaption") == ["All tasks", *TASKS]
    assert sum(map(sum, data_of(browser, "position")[0][0]["z"])) == QUERIES * len(TASKS)
    assert browser.get_log("browser") == []


def test_models_and_the_metric_filter(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["full"], 1280)
    assert len(seen(browser, "#overview .model")) == 2
    before = [trace["y"] for trace in data_of(browser, "results")[1] if trace["type"] == "bar"]
    browser.find_element(By.CSS_SELECTOR, "#entries summary").click()
    browser.find_element(By.CSS_SELECTOR, "input[value=m0]").click()
    wait(browser)
    bars = [trace["y"] for trace in data_of(browser, "results")[1] if trace["type"] == "bar"]
    assert bars == before[1:]
    assert len(seen(browser, "#overview .model")) == 1
    assert "IRanker-3B" in seen(browser, "#overview .paper")[-1]
    assert data_of(browser, "rounds") == []  # only the other one eliminates
    assert len(data_of(browser, "training")[0]) == 3  # a long run, with a running mean, and a short one
    browser.find_element(By.CSS_SELECTOR, "input[value=r0]").click()
    wait(browser)
    assert len(data_of(browser, "training")[0]) == 1
    choose(browser, "metric", "hit@5")
    bars = [trace["x"][0] for trace in data_of(browser, "results")[1] if trace["type"] == "bar"]
    assert bars == [50, 20]  # the paper has no hit@5
    assert seen(browser, "#entries label") == []  # a click elsewhere has closed the menu
    browser.find_element(By.CSS_SELECTOR, "#entries summary").click()
    browser.find_element(By.CSS_SELECTOR, "button[data-check='']").click()
    wait(browser)
    assert data_of(browser, "training") == []
    assert "Nothing to show for this choice." in seen(browser, "#training .none")
    browser.find_element(By.CSS_SELECTOR, "button[data-check=yes]").click()
    wait(browser)
    assert len(data_of(browser, "training")[0]) == 3
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_about_nothing_says_so(browser: Chrome, pages: dict[str, Path], width: int) -> None:
    show(browser, pages["bare"], width)
    assert seen(browser, "figure") == []
    assert "empty: metrics.jsonl is empty, no step was logged." in seen(browser, "#training .missing")
    assert seen(browser, "#examples .missing") == ["Left out, since the file holds no rankings: bare."]
    assert overflow(browser) == 0
    assert browser.get_log("browser") == []

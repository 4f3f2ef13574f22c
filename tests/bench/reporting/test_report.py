"""The page holds everything in itself, tells what it should, and works in a browser."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.planning import suite
from bench.records import COLUMNS
from bench.reporting import report, tables

RESULTS = Path(__file__).resolve().parents[3] / "results"
VOID = {"meta", "link", "input", "img", "wbr"}


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.ids, self.inside, self.scripts = [], [], [], "", []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [dict(attributes)["id"]] if "id" in dict(attributes) else []
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "script":
            self.scripts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


SHOWN = [
    "mean_color",
    "raw_pixels",
    "random",
    "supervised",
    "rotation",
    "deepcluster",
    "bigan",
    "random_rescaled",
]


@pytest.fixture(scope="module")
def page():
    pool = report.Pool()
    rows = tables.read(RESULTS / "lecture_embedded.csv")
    rows = rows[rows["label"].isin(SHOWN) & rows["protocol"].isin(["linear_probe", "knn"])]
    section = report.of_suite(suite.load("lecture_embedded"), rows, Path("no runs"), pool)
    return report.page("A page", [section], pool)


def test_it_is_well_formed_and_needs_no_network(page):
    parsed = Parsed(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    links = [a[k] for _, a in parsed.tags for k in ("src", "href") if a.get(k)]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(parsed.ids)
    assert "@import" not in page
    assert "url(" not in page


def test_tables_are_named_and_headed(page):
    parsed = Parsed(page)
    assert len(parsed.all("table")) == len(parsed.all("caption")) == 3  # two of what is shown, cost
    assert {a.get("scope") for a in parsed.all("th")} <= {"col", "row", "rowgroup"}
    assert all(a.get("alt") for a in parsed.all("img"))
    assert parsed.all("html")[0]["lang"] == "en"


def _code_of_rotation():
    """The mark of training and probe, as it stands in the table."""
    with (RESULTS / "lecture_embedded.csv").open(newline="") as file:
        rows = [
            r for r in csv.DictReader(file) if (r["label"], r["protocol"]) == ("rotation", "linear_probe")
        ]
    (code,) = {row["code_digest"] for row in rows}
    assert re.fullmatch("[0-9a-f]{8}:[0-9a-f]{8}", code)
    return code


def test_every_number_knows_its_runs(page):
    parsed = Parsed(page)
    known = json.loads(parsed.scripts[0])
    buttons = [a for a in parsed.all("button") if a.get("class") == "number"]
    assert len(buttons) == len(known["numbers"]) > 40
    texts = known["texts"]
    found = next(n for n in known["numbers"] if texts[n["title"]].startswith("probe: rotation, conv3: 77.5"))
    head = [texts[i] for i in found["head"]]
    values = [float(texts[row[head.index("value")]]) for row in found["rows"]]
    assert sorted(values) == [76.2, 76.2, 78.0, 78.4, 78.95]
    assert ("code_digest", _code_of_rotation()) in [(texts[a], texts[b]) for a, b in found["shared"]]


def test_cost_by_hand():
    """Two models of 30 and 90 minutes, each judged twice: a training and a judging count once."""
    base = dict.fromkeys(COLUMNS, "") | {
        "label": "a",
        "method": "a",
        "status": "ok",
        "metric": "top1",
        "value": 1.0,
    }
    base |= {"split": "test", "protocol": "p", "dataset": "d", "images_seen": 10, "eval_seconds": 360}
    rows = [
        base
        | {
            "training": f"t{t}",
            "seed": t,
            "cell": c,
            "train_seconds": s,
            "peak_memory_mb": 100 * (t + 1),
            "layer": k,
        }
        for t, s in enumerate((1800, 5400))
        for c in ("x", "y")
        for k in ("conv1", "conv2")
    ]
    cost = report._cost(tables.frame(rows), "s")
    (line,) = cost["measured"]
    assert [e["text"] for e in line["entries"]] == ["2", "2", "3,600", "0.4", "10", "200"]


def test_failures_are_told_with_reasons_and_names_are_escaped():
    base = dict.fromkeys(COLUMNS, "") | {
        "label": "<b>",
        "method": "a",
        "protocol": "p",
        "dataset": "d",
        "training": "t",
    }
    rows = [base | {"status": "failed", "reason": "loss is NaN", "cell": "c"}]
    rows += [base | {"status": "ok", "metric": "top1", "value": 1.0, "split": "test", "seed": 1, "cell": "e"}]
    pool = report.Pool()
    made = suite.Suite("s", Path("s.toml"), "</script><b>", None, ())
    text = report.page("t", [report.of_suite(made, tables.frame(rows), Path("none"), pool)], pool)
    Parsed(text)
    assert "loss is NaN" in text
    assert "<b>" not in text
    assert text.count("</script>") == 2


def test_pictures_and_losses_of_runs_are_shown(tmp_path):
    import pandas as pd
    from PIL import Image

    folder = tmp_path / "t"
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "pictures" / "filled_in.png")
    pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}).to_parquet(folder / "curves.parquet")
    base = dict.fromkeys(COLUMNS, "") | {
        "label": "a",
        "method": "a",
        "status": "ok",
        "training": "t",
        "cell": "c",
    }
    rows = [
        base | {"metric": "top1", "value": 1.0, "split": "test", "protocol": "p", "dataset": "d", "seed": 0}
    ]
    made = suite.Suite("s", Path("s.toml"), "", None, ())
    section = report.of_suite(made, tables.frame(rows), tmp_path, report.Pool())
    assert [p["title"] for p in section.pictures] == ["a · filled in"]
    assert section.figures[0]["title"].startswith("Losses")
    content = section.figures[0]["src"].partition(",")[2]
    assert base64.b64decode(content)[:4] == b"\x89PNG"
    (folder / "curves.parquet").write_bytes(b"half a file")  # costs its own panel
    again = report.of_suite(made, tables.frame(rows), tmp_path, report.Pool())
    assert again.figures[0]["title"].startswith("Losses")
    assert again.figures[0]["src"] != section.figures[0]["src"]


def test_the_command(bench, home):
    (home / "results").mkdir()
    shutil.copy(RESULTS / "mixed_batches.csv", home / "results")
    done = bench("report", "mixed_batches")
    assert done.out == f"{home}/results/report.html\n"
    first = (home / "results" / "report.html").read_bytes()
    assert bench("report", "mixed_batches").code == 0
    assert (home / "results" / "report.html").read_bytes() == first
    assert bench("report", "mixed_batchs").code == 2
    assert bench("report", home / "results" / "mixed_batches.csv", "--out", home / "rows.html").code == 0
    assert "mixed_<wbr>40" in (home / "rows.html").read_text()


def test_a_table_that_cannot_be_made_costs_itself_alone():
    loaded = suite.load("mixed_batches")
    broken = {**loaded.tables[0], "name": "broken", "metric": "no_such_metric"}
    rows = tables.read(RESULTS / "mixed_batches.csv")
    found = replace(loaded, tables=(broken, *loaded.tables))
    section = report.of_suite(found, rows, Path("no runs"), report.Pool())
    assert len(section.tables) == len(loaded.tables)
    assert [line.partition(":")[0] for line in section.missing] == ["table broken"]


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture
def browser(page, tmp_path):
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("headless Chromium is missing: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(programs[1]))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    driver.set_window_size(1280, 900)
    driver.get((tmp_path / "page.html").as_uri())
    yield driver
    driver.quit()


@pytest.mark.slow
def test_it_sorts_filters_and_tells_what_is_behind_a_number(browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def rows():
        return [
            re.sub(r"\d$", "", r.text) for r in find("#lecture_embedded-probe tbody th") if r.is_displayed()
        ]

    before = rows()
    assert before[:4] == ["mean_color", "raw_pixels", "random", "supervised"]
    head = find("#lecture_embedded-probe thead th")[5]  # conv3
    button = head.find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)  # by keyboard
    assert head.get_attribute("aria-sort") == "descending"
    assert rows()[:3] == ["supervised", "rotation", "deepcluster"]
    assert set(rows()[-2:]) == {"mean_color", "raw_pixels"}  # without a number: last
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert rows()[0] == "bigan"
    assert set(rows()[-2:]) == {"mean_color", "raw_pixels"}
    button.click()
    assert rows() == before

    (box,) = find('input[data-filter="lecture_embedded-probe"]')
    box.send_keys("RANDOM")
    assert rows() == ["random", "random_rescaled"]
    assert find("#lecture_embedded-probe output")[0].text == "2 of 8 rows"
    box.clear()
    box.send_keys(Keys.SPACE)
    assert rows() == before

    number = next(b for b in find("#lecture_embedded-probe button.number") if b.text.startswith("77.5 ± 1.6"))
    browser.execute_script("arguments[0].focus()", number)
    number.send_keys(Keys.ENTER)
    (dialog,) = find("dialog")
    assert dialog.get_attribute("open") is not None
    assert "probe: rotation, conv3: 77.5 ± 1.6" in dialog.text
    assert _code_of_rotation() in dialog.text
    assert len(find("dialog tbody tr")) == 5
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert dialog.get_attribute("open") is None
    assert browser.switch_to.active_element == number  # the keyboard stands where it stood
    assert browser.get_log("browser") == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(browser, scheme):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    ground, ink = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )

    def light(color):
        """Relative luminance as WCAG defines it."""
        parts = [int(v) / 255 for v in re.findall(r"\d+", color)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    assert (light(ground) > light(ink)) == (scheme == "light")
    low, high = sorted((light(ground), light(ink)))
    assert (high + 0.05) / (low + 0.05) >= 7
    assert browser.get_log("browser") == []

"""The page in a real browser: a quiet console, curves, hover, zoom, toggles, light and dark."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist.html_report.page import page
from nanogpt_dist.inspect.run_record import read_run
from tests.nanogpt_dist.html_report.runs import BEGUN, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt install chromium")

# What a reader does, and what is seen then, as JSON. It is written into a copy of the page, which
# itself lets no script run but its own.
READER = """
const seen = {};
const chart = (name) => document.getElementById(`chart-${name}`);
const svg = chart("loss").querySelector("svg");
const box = svg.getBoundingClientRect();
const point = (kind, share, more = {}) => svg.dispatchEvent(new PointerEvent(kind, {
  clientX: box.left + box.width * share, clientY: box.top + 50, bubbles: true, ...more }));
const points = () => [...document.querySelectorAll("path[data-key='loss'].curve")].map(
  (path) => path.getAttribute("d").split("L").length);
const tip = () => ({ hidden: chart("loss").querySelector(".tip").hidden,
  text: chart("loss").querySelector(".tip").innerText });
const labels = () => [...svg.querySelectorAll(".grid text")].map((text) => text.textContent);
seen.points = points();
seen.widths = [document.body.scrollWidth, window.innerWidth];
seen.background = getComputedStyle(document.body).backgroundColor;
point("pointermove", 0.5);
seen.tip = tip();
seen.crosses = document.querySelectorAll(".cross path").length;
point("pointerleave", 0.5);
seen.left = tip();
const before = labels();
chart("loss").querySelector(".log input").click();
seen.log = [before, labels()];
document.querySelector("input[value='seconds']").click();
seen.time = labels();
point("pointerdown", 0.25);
point("pointermove", 0.5, { buttons: 1 });
point("pointerup", 0.5);
seen.zoomed = [labels(), !document.getElementById("whole").hidden];
document.getElementById("whole").click();
seen.whole = document.getElementById("whole").hidden;
// between two logged steps, where the norm's axis is logarithmic
zoom([50.2, 50.8]);
seen.between = [...document.querySelectorAll("#chart-norm .grid text")].length;
zoom(null);
seen.smoothed = charts.find((chart) => chart.spec.name === "norm").found.map(
  (line) => line.shown.reduce((sum, value) => sum + value, 0) / line.shown.length);
const slider = document.querySelector("#when input");
const texts = () => [...document.querySelectorAll(".sample .text")].map((each) => each.textContent);
seen.texts = [texts()];
slider.value = 0;
slider.dispatchEvent(new Event("input"));
seen.texts.push(texts());
const boxes = document.querySelectorAll("#runs input");
if (boxes.length) boxes[0].click();
seen.hidden = points();
seen.marks = [...svg.querySelectorAll(".mark")].map((mark) => mark.getAttribute("class"));
const out = document.createElement("pre");
out.id = "seen";
out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


def browse(file: Path, *flags: str) -> str:
    """The page's elements after its script has run; nothing was written to the console."""
    profile = f"--user-data-dir={file.parent / 'profile'}"
    usual = ["--headless", "--no-sandbox", "--disable-gpu", profile]
    logging = ["--enable-logging=stderr", "--v=0"]
    line = [str(BROWSER), *usual, *logging, *flags, "--dump-dom", file.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [each for each in done.stderr.splitlines() if "CONSOLE" in each]
    return done.stdout


def read_in_browser(file: Path, *flags: str) -> dict[str, Any]:
    """What a reader sees on a copy of the page."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"'sha256-[^']+'", "'unsafe-inline'", text, count=1)
    copy = file.with_name(f"read-{file.name}")
    copy.write_text(text.replace("</body>", f"<script>{READER}</script></body>"), "utf-8")
    found = re.search(r'<pre id="seen">(.*?)</pre>', browse(copy, *flags), re.DOTALL)
    assert found
    return json.loads(html.unescape(found[1]))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 100 and 200 steps; one with samples and events."""
    folder = tmp_path_factory.mktemp("runs")
    said = [
        {"step": step, "time": 1, "prompt": "Once", "text": f" said {step} </script>"}
        for step in (50, 100)
    ]
    events = [
        {"time": BEGUN, "event": "start", "step": 0},
        {"time": BEGUN + 20, "event": "save", "step": 40, "bytes": 1000, "seconds": 0.1},
        {"time": BEGUN + 30, "event": "resume", "step": 40},
        {"time": BEGUN + 40, "event": "skip", "step": 60},
    ]
    return [
        write_run(folder / "first", steps=100, events=events, samples=said),
        write_run(folder / "second", steps=200),
    ]


def written(runs: list[Path], file: Path) -> Path:
    file.write_bytes(page([read_run(run) for run in runs]))
    return file


def test_the_curves_of_two_runs_are_there_and_a_reader_finds_them(
    runs: list[Path], tmp_path: Path
) -> None:
    seen = read_in_browser(written(runs, tmp_path / "two.html"), "--window-size=1200,900")
    assert seen["points"] == [100, 200], "each logged step"
    assert seen["widths"][0] <= seen["widths"][1], "nothing runs out of the window"
    assert not seen["tip"]["hidden"]
    assert re.search(r"step 9\d · [\d.]+ k tokens · 4\ds", seen["tip"]["text"]), seen["tip"]
    assert "first train" in seen["tip"]["text"]
    assert "second val" in seen["tip"]["text"]
    assert seen["crosses"] >= 4, "all charts point at the same step"
    assert seen["left"]["hidden"]
    assert seen["log"][0] != seen["log"][1]
    assert "1m00s" in seen["time"]
    assert seen["zoomed"][1]
    assert seen["zoomed"][0] != seen["time"]
    assert seen["whole"]
    assert seen["texts"] == [[" said 100 </script>"], [" said 50 </script>"]]
    assert seen["hidden"] == [200]
    assert seen["between"] > 4, "ticks on both axes"


def test_the_smoothed_norm_of_a_long_run_is_about_what_was_measured(tmp_path: Path) -> None:
    texts = [{"step": step, "time": 1, "prompt": "a", "text": "b"} for step in (50, 100)]
    run = write_run(tmp_path / "spiky", steps=10_000, samples=texts)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spikes = [{**line, "grad_norm": 0.5 if line["step"] % 50 else 5.0} for line in lines]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in spikes))
    [found] = read_in_browser(written([run], tmp_path / "spiky.html"))["smoothed"]
    assert found == pytest.approx(0.59, rel=0.02)


def test_one_run_has_its_events_on_a_small_dark_screen(runs: list[Path], tmp_path: Path) -> None:
    dark = ("--force-dark-mode", "--window-size=400,800")
    seen = read_in_browser(written(runs[:1], tmp_path / "one.html"), *dark)
    assert seen["points"] == [100]
    assert seen["widths"][0] <= seen["widths"][1]
    assert max(map(int, re.findall(r"\d+", seen["background"])[:3])) < 60, "dark where asked for"
    assert seen["marks"] == ["mark save", "mark resume", "mark trouble"]


def test_the_page_itself_runs_under_its_own_policy(runs: list[Path], tmp_path: Path) -> None:
    found = browse(written(runs, tmp_path / "page.html"))
    paths = re.findall(r'<path class="curve"[^>]*data-points="(\d+)"[^>]*d="([^"]*)"', found)
    assert len(paths) >= 10
    for count, drawn in paths:
        assert drawn.count("L") + 1 == int(count)
    assert "NaN" not in "".join(drawn for _, drawn in paths)

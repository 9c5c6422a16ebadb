"""The page: whole in itself, the same each time, small, and with everything escaped."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.html_report import page as page_module
from nanogpt_dist.html_report.curves import axes_of, means_of_thinned, thin
from nanogpt_dist.html_report.happenings import MOST_EVENTS, events_to_show
from nanogpt_dist.html_report.page import page
from nanogpt_dist.html_report.sections import seconds_by_part
from nanogpt_dist.inspect.compare_runs import at_equal_tokens, read_curve
from nanogpt_dist.inspect.run_record import read_run
from nanogpt_dist.inspect.standing import standing
from nanogpt_dist.storage import run_folder
from tests.conftest import Run
from tests.nanogpt_dist.html_report.runs import BEGUN, write_run
from tests.nanogpt_dist.small import go, tiny

HOSTILE = """</script><script>alert(1)</script><!-- "'&lt; <img src=x onerror=alert(2)>"""


class Elements(HTMLParser):
    """The elements of a page, and the JSON of its script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data, self.words, self._in_data = "", "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        self._in_data = tag == "script" and ("id", "data") in attributes

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data
        else:
            self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def read(*runs: Path) -> tuple[Elements, dict[str, Any]]:
    elements = Elements(page([read_run(run) for run in runs]).decode())
    return elements, json.loads(elements.data)


def test_a_real_run_is_all_there_and_reads_no_other_file(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run", sample_interval=4, log_interval=1, sample_prompt=["def "]))
    records = [read_run(tmp_path / "run")]
    text = page(records).decode()
    assert page(records) == page([read_run(tmp_path / "run")]), "the same bytes each time"
    assert not re.search(r"(src|href)\s*=\s*[\"']?(?!data:)[^\"'\s]*[:/]", text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\((?!#)", text)
    elements = Elements(text)
    [run] = json.loads(elements.data)["runs"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert run["curves"]["loss"]["value"] == pytest.approx(losses, rel=1e-5)
    assert run["curves"]["val_loss"]["step"] == [4, 8]
    assert [each["step"] for each in run["samples"]] == [4, 8]
    for words in ("Samples", "n_embd", "step-00000008", "threads per rank", "done"):
        assert words in elements.words


def test_nothing_of_a_file_becomes_markup(tmp_path: Path) -> None:
    name = """a"b'<b>&"""
    run = write_run(
        tmp_path / name,
        samples=[{"step": 5, "time": 1, "prompt": HOSTILE, "text": HOSTILE + "\ud800\u2028"}],
        events=[{"time": HOSTILE, "event": HOSTILE, "step": 3, HOSTILE: HOSTILE}],
        init_from=HOSTILE,
        out_dir=None,
    )
    (run / "run.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    status = {"verdict": HOSTILE, "step": 9, "message": HOSTILE}
    (run / "status.json").write_text(json.dumps(status))
    for runs in ([run], [run, write_run(tmp_path / "other")]):
        elements, data = read(*runs)
        assert elements.count("script") == 2
        assert not {"img", "b"} & {tag for tag, _ in elements.found}
        assert not any(key.startswith("on") for _, given in elements.found for key in given)
        assert data["runs"][0]["name"] == name
        assert data["runs"][0]["samples"][0]["text"].startswith(HOSTILE)
        assert name in elements.words
        assert HOSTILE in elements.words


def test_a_long_run_stays_small_and_keeps_its_extremes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "long", steps=100_000)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    spike = json.loads(lines[70_000])
    lines[70_000] = json.dumps({**spike, "loss": 99.0, "grad_norm": 1e6})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    records = [read_run(run)]
    content = page(records)
    assert len(content) < 1_000_000
    [found] = json.loads(Elements(content.decode()).data)["runs"]
    loss = found["curves"]["loss"]
    assert len(loss["value"]) <= 2000
    assert max(loss["value"]) == 99
    assert loss["step"][loss["value"].index(99)] == spike["step"]
    assert loss["step"][-1] == 100_000
    assert max(found["curves"]["grad_norm"]["value"]) == 1e6


def test_many_runs_share_the_room(tmp_path: Path) -> None:
    records = [read_run(write_run(tmp_path / "run", steps=1500))] * 40
    assert len(page(records)) < 3_000_000


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    limit=st.integers(4, 60),
)
def test_thinned_curves_keep_ends_and_extremes(values: list[float], limit: int) -> None:
    chosen = thin(np.array(values), limit)
    kept = [values[i] for i in chosen]
    assert len(kept) <= max(limit, min(limit, len(values)))
    assert list(chosen) == sorted(set(chosen.tolist()))
    assert (kept[0], kept[-1]) == (values[0], values[-1])
    assert (min(kept), max(kept)) == (min(values), max(values))


@given(
    spikes=st.lists(st.integers(1, 9998), max_size=300),
    limit=st.integers(4, 2000),
)
def test_means_of_thinned_curves_have_the_mean_of_all(spikes: list[int], limit: int) -> None:
    values = np.full(10_000, 0.5)
    values[spikes] = 5.0
    means = means_of_thinned(values, limit)
    assert len(means) == len(thin(values, limit))
    assert means.mean() == pytest.approx(values.mean(), rel=0.25 if limit < 50 else 0.05)


def test_an_old_run_and_a_damaged_one_have_pages(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", old=True)
    elements, data = read(old)
    assert "seconds" in data["runs"][0]["curves"]["loss"], "from the tokens at their speed"
    assert "Where the time went" not in elements.words
    damaged = write_run(tmp_path / "damaged")
    (damaged / "config.toml").write_text("n_layer = 'many'\n")
    (damaged / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "lo')
    (damaged / "status.json").write_text("{")
    elements, data = read(damaged)
    assert "n_layer" in elements.words
    assert data["charts"] == []
    assert "No step is logged yet." in elements.words
    elements, data = read(old, damaged)
    assert [run["name"] for run in data["runs"]] == ["old", "damaged"]


BIG = 10**308
BEYOND: dict[str, list[dict[str, Any]]] = {
    "a sum": [{"tokens": 100 * i, "interval_s": 1, "data_s": BIG} for i in range(1, 6)],
    "a wide integer": [{"tokens": i * 10**30, "interval_s": 1} for i in range(1, 6)],
    "endless seconds": [{"tokens": i * 1e299, "tokens_per_second": 1e-300} for i in range(1, 6)],
    "endless parts": [{"tokens": i, "interval_s": 1, "data_s": -1e300} for i in range(1, 6)],
    "wide swings": [{"tokens": (-1) ** i * 1.7e308, "mfu": BIG} for i in range(1, 6)],
    "a wide step": [{"tokens": i, "step": 10**300} for i in range(1, 6)],
}


@pytest.mark.parametrize("kind", BEYOND)
@pytest.mark.parametrize("settings", [True, False])
def test_numbers_that_no_run_has_are_left_out(kind: str, settings: bool, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=40)
    with (run / "metrics.jsonl").open("a") as file:
        for i, line in enumerate(BEYOND[kind], 41):
            file.write(json.dumps({"step": i, "loss": 1.0, **line}) + "\n")
    (run / "samples.jsonl").write_text('{"step": 1e300, "prompt": "a", "text": "b"}\n')
    if not settings:
        (run / "config.toml").unlink()
    record = read_run(run)
    _, data = read(run)
    assert max(data["runs"][0]["curves"]["loss"]["step"]) in (40, 45)
    found = run_folder.to_json(standing(record, 0.0))
    assert json.loads(found)["step"] in (40, 45)


def test_the_axis_of_time_has_the_seconds_that_were_spent(tmp_path: Path) -> None:
    new = axes_of(read_run(write_run(tmp_path / "new", steps=40, every=4)))
    assert new.seconds == pytest.approx(0.5 * new.steps)
    old = axes_of(read_run(write_run(tmp_path / "old", steps=40, every=4, old=True)))
    assert old.seconds == pytest.approx(0.4 * old.steps), "the first interval at the second's pace"
    assert new.at([6]) == {"step": [6], "tokens": [6144], "seconds": [3.0]}


def test_the_shares_of_time_are_of_the_whole(tmp_path: Path) -> None:
    found = seconds_by_part(read_run(write_run(tmp_path / "run", steps=100)))
    assert found == pytest.approx(
        {"computing": 42.5, "data": 5.0, "communication": 0.0, "saving": 2.5, "evaluation": 0.0}
    )


def test_troubles_are_shown_where_there_are_too_many_events(tmp_path: Path) -> None:
    events = [{"time": BEGUN + i, "event": "save", "step": i} for i in range(1000)]
    events[7] = {"time": BEGUN, "event": "skip", "step": 7, "grad_norm": None}
    shown, left_out = events_to_show(read_run(write_run(tmp_path / "run", events=events)))
    assert (len(shown), left_out) == (MOST_EVENTS, 1000 - MOST_EVENTS)
    assert shown[0]["event"] == "skip"
    assert [event["step"] for event in shown] == sorted(event["step"] for event in shown)
    elements, data = read(tmp_path / "run")
    assert "800 earlier starts and saves" in elements.words
    marks = data["runs"][0]["marks"]
    assert marks[0] == {
        **{"event": "skip", "kind": "trouble", "text": ""},
        **{"step": 7, "tokens": 7168, "seconds": 3.5},
    }


def test_two_runs_show_what_compare_shows(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a" / "same", learning_rate=1e-3),
        write_run(tmp_path / "b" / "same", learning_rate=2e-3, tensorboard=False),
    ]
    elements, data = read(*runs)
    assert [run["name"] for run in data["runs"]] == [str(run) for run in runs]
    assert "learning_rate" in elements.words
    assert "tensorboard" not in elements.words
    for row in at_equal_tokens([read_curve(run) for run in runs]):
        for loss in (*row["train_loss"], *row["val_loss"]):
            assert loss is None or f"{loss:.4f}" in elements.words


def test_the_script_is_short_and_makes_no_markup_of_texts() -> None:
    script = (Path(page_module.__file__).parent / "report.js").read_text()
    assert len(script.splitlines()) < 400
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|fetch\(|XMLHttp", script)
    assert "</script" not in script


def test_the_commands_write_it(tmp_path: Path, nanogpt: Run) -> None:
    write_run(tmp_path / "out" / "a")
    write_run(tmp_path / "out" / "b", n_layer=3)
    assert nanogpt("report", "out/a").stdout == "out/a/report.html is written\n"
    assert nanogpt("report", "out/a", "out/b").stdout == "out/report.html is written\n"
    done = nanogpt("compare", "out/a", "out/b", "--html", "new/two.html")
    assert done.stdout.endswith("new/two.html is written\n")
    two = (tmp_path / "new" / "two.html").read_bytes()
    assert two == (tmp_path / "out" / "report.html").read_bytes()
    assert nanogpt("report", "out/a", "--out", "/dev/stdout").stdout.startswith("<!doctype html>")
    missing = nanogpt("report", "out/none", code=66)
    assert missing.stderr.startswith("nanogpt: error: out/none does not exist; give a run")


def test_a_run_that_takes_no_page_says_how_to_write_it_elsewhere(
    nanogpt: Run, tmp_path: Path
) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "a" / "report.html").symlink_to("/dev/full")
    said = nanogpt("report", "a", code=74).stderr
    assert said.endswith("; --out FILE writes it elsewhere\n")
    assert len(said.splitlines()) == 1
    assert "elsewhere" not in nanogpt("report", "a", "--out", "/dev/full", code=74).stderr

"""The page of a run: what its first screen says, that no data breaks it, and how a real browser shows it."""

import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dolly_batch.page.charts import compact, nice
from dolly_batch.page.html import Html, tag
from dolly_batch.page.pages import plan_page, plans_page
from dolly_batch.page.times import speeds
from dolly_batch.report import PlanReport, Report

EVIL = "</style><script>alert(1)</script>\"'&"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def wave(began_s: float, slowest_s: float, host: str = "10.0.4.11") -> list[Any]:
    return [125, 11_000, 7_000, 5, began_s, began_s + 80, 8, 7 * 30 + slowest_s, 3, slowest_s, host]


def start(from_s: float, until_s: float, rows: int) -> list[list[float]]:
    seconds = int(until_s - from_s)
    return [[from_s + at, rows + 2 * at, 180 * at, 100 * at] for at in range(0, seconds, 2)]


PLAN = PlanReport(
    plan_id="p8b15f3c178d7d34c8988e27ee31ed18",
    name="answer-tickets",
    created_at="2026-11-30T16:59:27.123+00:00",
    state="complete",
    model="databricks/dolly-v2-3b",
    num_input_rows=5000,
    num_answered=4861,
    num_todo=4861,
    token_histogram={"<= 1024": 70, "<= 128": 2210, "<= 2048": 11, "<= 32": 120, "> 2048": 0},
    report={
        "by_status": {"ok": 4752, "too_long": 131, "truncated": 48, "model_error": 61, "null_instruction": 8},
        "error_share": 0.0384,
        "seconds": {"session": 21.4, "plan": 48.2, "generate": 1520.3, "publish": 39.1, "audit": 12.7},
        **{"num_generated_tokens": 273_000, "num_read_tokens": 406_000, "gpu_hours": 3.21, "cost": 4.24},
        "tags": {"team": "support"},
        **{"checks": {"short": 97, "polite": 0}, "num_checked_rows": 4752},
    },
    progress={
        "waves": {str(n): wave(n * 37.0, 290.0 if n == 17 else 30.0) for n in range(40)},
        "starts": [start(1000, 1400, 0), start(9000, 9900, 800)],
    },
    details={
        "ran": {"model": {"path": "databricks/dolly-v2-3b", "revision": None}, "versions": {"spark": "4.0.1"}},
        "answer_lengths": {"<= 8": 500, "<= 16": 410, "> 16": 0},
        "confidences": {"0.0": 30, "0.9": 2000},
        "labels": [["billing", 1800, 0.91], [None, 11, None]],
        "look": {"too_long": [f"t-{n}" for n in range(10)], "model_error": ["t-9", None], "least confident": ["t-4"]},
    },
)


def texts(page: str) -> str:
    """What a reader sees, without tags."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    Reader().feed(page.split("</head>")[-1])
    return " ".join(found)


def test_what_asks_for_attention_stands_first() -> None:
    page = plan_page(PLAN)
    shown = texts(page)
    assert "131 rows, 2.6% of all; 61 rows have other errors. What helps: set limits.long_prompt" in shown
    assert "wave 17, task 3 4 min 50 s" in shown
    assert shown.index("too_long") < shown.index("wave 17") < shown.index("Rows by status")
    assert "short 97 (2.0%)" in shown
    assert "and 1 whose ids may name a person, 59 more" in shown
    assert [shown.index(name) for name in ("≤ 32", "≤ 128", "≤ 1024")] == sorted(
        shown.index(name) for name in ("≤ 32", "≤ 128", "≤ 1024")
    )
    assert len(page) < 100_000
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", page), "a page needs no network"


def replaced(value: Any) -> Any:
    """The same with every text, and every name, made one that would break HTML."""
    if isinstance(value, dict):
        return {key if key in KEPT or key[0] in "<>0123456789" else key + EVIL: replaced(v) for key, v in value.items()}
    if isinstance(value, list):
        return [replaced(part) for part in value]
    return value + EVIL if isinstance(value, str) else value


KEPT = {*PLAN.report, *PLAN.progress, *PLAN.details, *PLAN.report["by_status"], *PLAN.report["seconds"]}


def test_no_data_breaks_the_page() -> None:
    parts = {name: replaced(getattr(PLAN, name)) for name in ("report", "progress", "details")}
    evil = replace(PLAN, name=EVIL, model=EVIL, model_revision=EVIL[:9], state=EVIL, plan_id=EVIL, **parts)
    for page in (plan_page(evil), plans_page(EVIL, [evil])):
        assert "<script" not in page
        assert page.count("</style>") == 1
        assert texts(page).count("<script>alert(1)</script>") >= 8
    card = Report(EVIL, outcome=EVIL, message=EVIL, by_status={"ok": 1})._repr_html_()
    assert "<script" not in card
    assert str(tag("a", "<", Html("<b>"), title='"')) == '<a title="&quot;">&lt;<b></a>'


@pytest.mark.parametrize("state", ["complete", "open, 1 of 2 waves", "abandoned", "published, not audited"])
def test_what_is_not_known_is_left_out(state: str) -> None:
    bare = PlanReport("p1", "job", "2026-01-01T00:00:00", state, "tiny", 10, 5, 10)
    assert "Speed over time" not in plan_page(bare)
    assert state in texts(plans_page("all", [bare, PLAN]))


def test_half_a_surrogate_pair_is_shown_as_a_page_can_hold_it() -> None:
    labels = json.loads('{"labels": [["a\\ud800", 2, null]]}')
    page = plan_page(replace(PLAN, details=labels))
    assert "a\ufffd" in page
    assert page.encode()
    assert "answered questions (rows that ask the same are one)" in page


def test_tokens_that_were_reused_are_in_no_speed() -> None:
    report = PLAN.report | {"num_generated_tokens": 200_000, "num_begun_tokens": 47_970}
    shown = texts(plan_page(replace(PLAN, report=report)))
    assert "100 answer tokens/s" in shown  # (200,000 - 47,970) / 1520.3 s


def test_speeds_leave_out_the_time_between_starts() -> None:
    unit, segments, end_s = speeds(PLAN.progress)
    assert (unit, len(segments), end_s) == ("tokens/s", 2, 398 + 898)
    assert {round(value) for segment in segments for _, value in segment} == {100}
    assert segments[1][0][0] > 398
    rows_only = [[[at, 2 * at, 0, 0] for at in range(30)]]
    assert speeds({"starts": rows_only})[:2] == ("rows/s", speeds({"starts": rows_only})[1])


def test_numbers_for_axes() -> None:
    assert [nice(value) for value in (0, 0.013, 7, 290, 1000)] == [1.0, pytest.approx(0.015), 8, 300, 1000]
    assert [compact(value) for value in (7, 1234, 250_000, 3_100_000)] == ["7", "1.2k", "250k", "3.1M"]


PROBE = """<!doctype html><title>waiting</title>
<iframe src="plan.html" width=1280 height=800></iframe><iframe src="plan.html" width=390 height=800></iframe>
<iframe src="plans.html" width=1280 height=800></iframe><iframe src="plans.html" width=390 height=800></iframe>
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, width = frame.clientWidth
    const over = [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll table, svg"))
      .filter(e => e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML.slice(0, 80))
    const first = [...page.querySelectorAll(".note b")].map(e => e.getBoundingClientRect().bottom)
    return {wide: page.documentElement.scrollWidth - width, over, first: Math.max(...first)}
  })
  document.body.innerHTML = "<pre id=found></pre>"
  document.getElementById("found").textContent = JSON.stringify(found)
})
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here (Debian: apt install chromium)")
def test_a_real_browser_shows_it_without_overflow_and_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "plan.html").write_text(plan_page(PLAN), encoding="utf-8")
    (tmp_path / "plans.html").write_text(plans_page("Plans under /mnt/work", [PLAN, PLAN]), encoding="utf-8")
    (tmp_path / "probe.html").write_text(PROBE, encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        options += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
        url = f"http://127.0.0.1:{server.server_port}/probe.html"
        ran = subprocess.run([str(CHROMIUM), *options, url], capture_output=True, text=True, timeout=120, check=False)
        server.shutdown()
    found = re.search(r'<pre id="found">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found is not None, ran.stdout[-2000:] + ran.stderr[-2000:]
    frames = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert len(frames) == 4
    assert all(frame["wide"] <= 0 and frame["over"] == [] for frame in frames), frames
    assert frames[0]["first"] < 800, "the commonest error and the slowest task are on the first screen"
    assert not [line for line in ran.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]

"""Looks the versions of requirements.lock up among known vulnerabilities, by pip-audit and PyPI's advisories.

Fails (exit 1) for one that tools/advisories.txt does not allow, or allows no longer. Where PyPI gives no advisories (no
network, a mirror without them), it says so and ends well: offline nothing is to fail.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

PROJECT = Path(__file__).parent.parent
LOCK, ALLOWED, STAMP = (
    PROJECT / "requirements.lock",
    PROJECT / "tools" / "advisories.txt",
    PROJECT / ".venv" / ".audited",
)
PROBE = "https://pypi.org/pypi/pip/json"
PROBE_TIMEOUT_S, TIMEOUT_S, DAY_S = 3, 120, 24 * 3600


def allowed_advisories(text: str, today: date) -> set[str]:
    """The advisories that are allowed today: lines `ID UNTIL why`, with UNTIL as 2026-12-31. Raises ValueError."""
    lines = (line.split("#")[0].split(None, 2) for line in text.splitlines())
    found = [line for line in lines if line]
    if short := [line[0] for line in found if len(line) < 3]:
        raise ValueError(f"{short[0]}: an allowed advisory has the day until which it is, and why")
    return {line[0] for line in found if date.fromisoformat(line[1]) >= today}


def has_advisories() -> bool:
    """Whether PyPI can be asked for them from here."""
    try:
        with urllib.request.urlopen(PROBE, timeout=PROBE_TIMEOUT_S) as answer:
            return "vulnerabilities" in json.load(answer)
    except (OSError, ValueError):
        return False


def run_pip_audit() -> str:
    """What pip-audit finds, as its JSON; empty where it could not ask."""
    command = [sys.executable, "-P", "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--progress-spinner", "off"]
    try:
        ran = subprocess.run([*command, "-f", "json"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return ran.stdout


def vulnerable(report: str, allowed: set[str]) -> list[str]:
    """A line for each package with an advisory that is not allowed, by none of its names."""
    lines = []
    for package in json.loads(report)["dependencies"]:
        for found in package.get("vulns", ()):
            if not {found["id"], *found.get("aliases", ())} & allowed:
                mended = ", ".join(found.get("fix_versions", ())) or "nothing yet"
                lines.append(f"{package['name']} {package['version']}: {found['id']}, mended by {mended}")
    return lines


def audit(today: date, can_ask: Callable[[], bool] = has_advisories, ask: Callable[[], str] = run_pip_audit) -> int:
    """Print what is found, and return the exit code."""
    allowed = allowed_advisories(ALLOWED.read_text("utf-8"), today)
    report = ask() if can_ask() else ""
    if not report:
        print("the locked versions were not audited: PyPI gives no advisories from here")
        return 0
    lines = vulnerable(report, allowed)
    for line in lines:
        print(line)
    if lines:
        print("raise these versions (`make lock`), or allow them for a time in tools/advisories.txt")
        return 1
    STAMP.parent.mkdir(exist_ok=True)
    STAMP.touch()
    return 0


def is_fresh() -> bool:
    """Whether these versions were audited within a day."""
    newest = max(path.stat().st_mtime for path in (LOCK, ALLOWED))
    return STAMP.exists() and STAMP.stat().st_mtime >= max(newest, time.time() - DAY_S)


def main() -> int:
    """Audit; with `--daily` not more than once a day."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--daily", action="store_true", help="only where these versions were not audited within a day")
    daily = parser.parse_args().daily
    return 0 if daily and is_fresh() else audit(datetime.now(UTC).date())


if __name__ == "__main__":
    sys.exit(main())

"""What is installed for development: its versions have hashes, and are looked up among known vulnerabilities."""

import json
import re
from datetime import date
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tools import audit

TODAY = date(2026, 11, 30)
FOUND = json.dumps(
    {
        "dependencies": [
            {"name": "torch", "version": "2.13.0", "vulns": []},
            {"name": "skipped", "skip_reason": "not on PyPI"},
            {"name": "rich", "version": "15.0.0", "vulns": [
                {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["15.0.1"], "description": "..."}
            ]},
        ]
    }
)  # fmt: skip


def canonical(line: str) -> str:
    return re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() + "==" + line.split("==")[1].split()[0]


def test_every_version_is_locked_with_hashes() -> None:
    text = (PROJECT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
    locked = {canonical(entry) for entry in entries}
    assert all("--hash=sha256:" in entry for entry in entries)
    named = [line for line in (PROJECT / "constraints.txt").read_text().splitlines() if "==" in line]
    assert not {canonical(line) for line in named} - locked, "run `make lock`"


def test_an_advisory_is_allowed_until_its_day() -> None:
    text = "# none\nPYSEC-1 2026-11-30 cannot be reached\nGHSA-2 2026-11-29 was for a time\n"
    assert audit.allowed_advisories(text, TODAY) == {"PYSEC-1"}
    for bad in ("PYSEC-1 2026-12-31\n", "PYSEC-1 soon because\n"):
        with pytest.raises(ValueError):  # noqa: PT011 - two of them
            audit.allowed_advisories(bad, TODAY)
    audit.allowed_advisories(audit.ALLOWED.read_text(), TODAY)


def test_what_is_found_fails_and_what_cannot_be_asked_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(audit, "ALLOWED", tmp_path / "allowed.txt")
    audit.ALLOWED.write_text("")

    def unexpected() -> str:
        raise AssertionError("there is nobody to ask")

    assert audit.audit(TODAY, lambda: False, unexpected) == 0
    assert "not audited" in capsys.readouterr().out
    assert audit.audit(TODAY, lambda: True, lambda: "") == 0
    assert not audit.is_fresh()
    assert audit.audit(TODAY, lambda: True, lambda: FOUND) == 1
    assert "rich 15.0.0: PYSEC-1, mended by 15.0.1" in capsys.readouterr().out
    audit.ALLOWED.write_text("CVE-1 2026-12-01 its server is not started here\n")
    assert audit.audit(TODAY, lambda: True, lambda: FOUND) == 0
    monkeypatch.setattr(audit, "LOCK", audit.ALLOWED)
    assert audit.is_fresh()

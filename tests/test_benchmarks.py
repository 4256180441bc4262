"""The pages say what the result files say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_table_of_the_pages_comes_from_the_result_files():
    done = subprocess.run(
        [sys.executable, "report.py", "--check"], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_check_notices_a_changed_number(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "benchmarks.md", tmp_path / "docs" / "benchmarks.md")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(
        page.replace("<!-- /results -->", "| made up | 1.23 |\n<!-- /results -->"), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "report.py", "--check"],
        cwd=tmp_path / "benchmarks",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "README.md is not what" in done.stderr

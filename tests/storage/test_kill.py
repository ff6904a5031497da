"""A build killed at any moment leaves the store without the product or with the right one, and can be resumed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("step", "moments", "kills"), [(5, 10, 30), pytest.param(1, 100, 180, marks=pytest.mark.slow)])
def test_killed_at_writes_and_at_random_moments(ingested, tmp_path, step, moments, kills):
    url = tmp_path / "s"
    shutil.copytree(ingested.url, url)
    script = Path(__file__).with_name("kill_server.py")
    command = [sys.executable, str(script), str(url), str(step), str(moments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    right, found = rows[0]["right"], rows[1:]
    assert len(right) == 1
    assert right[0][1:] == ["PASS", []]
    assert len(found) >= kills
    for row in found:
        assert row["seen"] in ([], right), row
        assert row["resumed"] == right, row
    assert any(row["seen"] == [] for row in found)

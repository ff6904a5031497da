"""A build killed at any moment leaves the store without the product or with the right one, and can be resumed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path


def test_killed_at_every_write_and_at_random_moments(ingested, tmp_path):
    url = tmp_path / "s"
    shutil.copytree(ingested.url, url)
    script = Path(__file__).with_name("kill_server.py")
    done = subprocess.run([sys.executable, script, url], capture_output=True, text=True, timeout=240, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    right, kills = rows[0]["right"], rows[1:]
    assert len(right) == 1
    assert right[0][1:] == ["PASS", []]
    assert len(kills) > 60  # every write of the build, and 25 random moments
    for row in kills:
        assert row["seen"] in ([], right), row
        assert row["resumed"] == right, row
    assert any(row["seen"] == [] for row in kills)

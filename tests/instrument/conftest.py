import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the measured data; skips the test where there is none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LSSTCAL_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no measured data: set LSSTCAL_REAL_DATA")
    return folder

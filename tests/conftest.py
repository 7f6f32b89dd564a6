"""What every test stands on: no network, no caches of the user's, few threads, real images."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

# Set before anything is imported: that is when the libraries read them. Processes that tests start
# inherit them.
_caches = tempfile.TemporaryDirectory(prefix="featprep-test-caches-")
for _name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "TRANSFORMERS_CACHE", "PYTHONSAFEPATH"):
    os.environ.pop(_name, None)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "XDG_CACHE_HOME": _caches.name,
    "OMP_NUM_THREADS": str(min(4, os.cpu_count() or 1)),
    "PYTHONDONTWRITEBYTECODE": "1",
}

# Nothing is written into the checkout, and a shared machine may be slow.
set_hypothesis_home_dir(_caches.name)
hypothesis.settings.register_profile("featprep", database=None, deadline=None)
hypothesis.settings.load_profile("featprep")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test images; the tests that need it are skipped without."""
    folder = os.environ.get("FEATPREP_TEST_DATA")
    if not folder:
        pytest.skip("needs real images: set FEATPREP_TEST_DATA to their folder")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"FEATPREP_TEST_DATA={folder} is no folder: correct it, or unset it")
    return path

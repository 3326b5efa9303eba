"""Every test runs offline, on one thread, with the same random examples and with caches of its own.

Set before any test file is imported, because torch, datasets and the hub client read it at import.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings

CACHES = Path(tempfile.mkdtemp(prefix="mtnlp-tests-"))
atexit.register(shutil.rmtree, CACHES, ignore_errors=True)

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HOME=str(CACHES / "hub"),
    HF_DATASETS_CACHE=str(CACHES / "datasets"),
    MTNLP_CACHE=str(CACHES / "mtnlp"),
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # the workers of pytest-xdist share the cores
    MKL_NUM_THREADS="1",
)
settings.register_profile("same every time", derandomize=True, deadline=None, database=None)
settings.load_profile("same every time")

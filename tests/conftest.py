"""Every test runs offline, on one thread, with the same random examples and with caches of its own.

Set before any test file is imported, because torch, datasets and the hub client read it at import.
"""

import atexit
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
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

NEAR = {None, "", "localhost", "127.0.0.1", "0.0.0.0", "::1", socket.gethostname()}


def _stay_here(event: str, args: tuple[Any, ...]) -> None:
    """A test that asks for another machine fails at once; clients would try for minutes, and say nothing."""
    if event == "socket.getaddrinfo" and args[0] not in NEAR:
        raise RuntimeError(f"A test asks for {args[0]}; every test runs offline.")


sys.addaudithook(_stay_here)


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that are trained from now on, "resumed " before those that go on."""
    from mtnlp.runs import train

    names, real = [], train.finetune

    def finetune(source, *args, **more):
        if not more.get("dry_run"):
            names.append(("resumed " if more["resume"] else "") + source.name)
        return real(source, *args, **more)

    monkeypatch.setattr(train, "finetune", finetune)
    return names

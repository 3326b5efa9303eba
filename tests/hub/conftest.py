"""A hub for each test that asks for one, and this process's client set to it."""

from __future__ import annotations

import pytest
from hub.server import connect, running

from mtnlp.data import hub as reached

TOKEN = "hf_canaryCanaryCanary0123456789"  # may be found nowhere but in the requests


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub on which this process is logged in as `ann`."""
    with running() as hub:
        hub.users = {TOKEN: "ann"}
        connect(hub, tmp_path / "home", monkeypatch, TOKEN)
        yield hub
    reached.reachable.cache_clear()


@pytest.fixture
def impatient(monkeypatch):
    """The client does not wait between its tries."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)

"""The hub of data sets and models, without waiting for one that cannot be reached.

Its client tries five times in half a minute, for every file; one look beforehand says whether that can help.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies

PATIENCE = 5.0  # seconds


@lru_cache(maxsize=1)
def reachable() -> bool:
    """Whether the hub's machine answers; behind a proxy nobody can tell, so yes."""
    from huggingface_hub import constants

    place = urlsplit(constants.ENDPOINT)
    if {"http", "https", "all"} & getproxies().keys():
        return True
    try:
        port = place.port or {"http": 80}.get(place.scheme, 443)
        socket.create_connection((place.hostname, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, if the hub is out of reach, its cache is read and all else is an error at once."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or reachable():
        yield
        return
    settings = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [setting.HF_HUB_OFFLINE for setting in settings]
    try:
        for setting in settings:
            setting.HF_HUB_OFFLINE = True
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.HF_HUB_OFFLINE = value

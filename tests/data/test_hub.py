"""A hub out of reach is an error at once, or the cache; a hub within reach is asked as ever."""

from __future__ import annotations

import socket

import datasets
import pytest
from huggingface_hub import constants

from mtnlp.data import hub


class Connection:
    def close(self):
        pass


@pytest.fixture
def network(monkeypatch):
    """network(answers) -> the places that are asked."""

    def network(answers):
        asked = []

        def connect(place, timeout):
            asked.append(place)
            if not answers:
                raise OSError("no route to host")
            return Connection()

        monkeypatch.setattr(socket, "create_connection", connect)
        return asked

    for setting in (constants, datasets.config):
        monkeypatch.setattr(setting, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(hub, "getproxies", dict)
    hub.reachable.cache_clear()
    yield network
    hub.reachable.cache_clear()


def offline():
    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_is_left_alone_where_it_does_not_answer(network, answers):
    asked = network(answers)

    for _ in range(2):
        with hub.at_once():
            assert offline() == (not answers, not answers)
        assert offline() == (False, False)
    assert asked == [("hub.example", 443)]


def test_behind_a_proxy_the_hub_is_asked_as_ever(network, monkeypatch):
    asked = network(False)
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})

    with hub.at_once():
        assert offline() == (False, False)
    assert asked == []


def test_who_says_offline_is_not_asked_for_a_network(network, monkeypatch):
    asked = network(True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with hub.at_once():
        assert constants.HF_HUB_OFFLINE
    assert asked == []

"""Damaged and hostile bundles are refused by name. benchmarks/hostile.py makes them and measures how fast."""

from __future__ import annotations

import importlib
import sys

import pytest
from pages import ROOT


@pytest.fixture(scope="module")
def hostile():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("hostile")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("each", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_two_hundred_bundles_with_one_thing_wrong_are_each_refused_with_a_reason(hostile, tmp_path, each):
    base, backbone = hostile.published(tmp_path)
    cases = list(hostile.cases(base))

    assert len(cases) == 200
    for what, damage in cases[::each]:
        reason, _, _ = hostile.refusal(base, damage, backbone, tmp_path / "case")
        assert "case/bundle" in reason, (what, reason)
        assert len(reason) < 2_000, what

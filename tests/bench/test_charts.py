"""Charts against coordinates that were worked out by hand, and what no name or number may break."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlp.bench import charts
from mtnlp.bench.charts import Rank

EVIL = "</title><script>alert(1)</script>\"'&<"


def parsed(chart):
    """The SVG as XML, which no unclosed tag passes."""
    return ElementTree.fromstring(chart)


def attributes(chart, tag, *names):
    return [tuple(float(part.get(name)) for name in names) for part in parsed(chart).iter(tag)]


def test_a_line_goes_through_its_values_from_the_lower_left_to_the_upper_right_of_its_box():
    chart = charts.lines([1, 2, 3], [0.0, 1.0, 2.0], "Loss", span=(1, 3))

    (line,) = parsed(chart).iter("polyline")
    assert line.get("points") == "46.0,128.0 154.0,70.0 262.0,12.0"
    assert attributes(chart, "circle", "cx", "cy") == [(262.0, 12.0)]
    said = [text.text for text in parsed(chart).iter("text")]
    assert said == ["0", "1", "2", "1", "3", "2"]  # values, steps, and the value at the end
    assert parsed(chart).find("title").text == "Loss"
    assert parsed(chart).find("desc").text == "0 at step 1, 2 at step 3; lowest 0, highest 2"


def test_a_task_that_ends_early_ends_early_on_the_common_axis_and_what_is_no_number_is_left_out():
    chart = charts.lines([2, 3, 4, 6], [4.0, math.nan, 2.0, 3.0], "Loss", span=(1, 11), window=3, low=0.0)

    dots = re.findall(r"M([\d.]+) ([\d.]+)h0", next(parsed(chart).iter("path")).get("d"))
    assert dots == [("67.6", "12.0"), ("110.8", "70.0"), ("154.0", "41.0")]  # 46 + 21.6 per step; 29 per unit
    assert next(parsed(chart).iter("polyline")).get("points") == "67.6,12.0 110.8,70.0 154.0,41.0"
    assert charts.lines([1], [math.inf], "Loss", span=(1, 1)) == "<p>Nothing was recorded.</p>"
    parsed(charts.lines([1], [5.0], "Loss", span=(1, 1)))


@pytest.mark.parametrize("window", [1, 3, 10, 101])
def test_the_running_mean_is_that_of_all_values_near_a_step(window):
    draw = np.random.default_rng(window)
    steps = np.sort(draw.choice(200, 60, replace=False))
    values = draw.normal(size=60)

    found = charts.smoothed(steps, values, window)

    near = [values[abs(steps - step) <= window // 2].mean() for step in steps]
    np.testing.assert_allclose(found, near, atol=1e-12)


def test_ranks_put_dots_intervals_bars_and_marks_where_the_axis_says():
    rows = [Rank("a", 0.5, (0.25, 0.75), 0.0), Rank("b", 1.0)]

    chart = charts.ranks(rows, "Scores")
    bars = charts.ranks([Rank("a", 0.2, base=0.4, shown="20 %")], "Shares", span=(0.0, 0.0), bars=True)
    around = charts.ranks([Rank("a", -2.0, (-4.0, 1.0), 0.0)], "Differences", span=(0.0, 0.0), bars=True)

    assert attributes(chart, "circle", "cx", "cy") == [(160.0, 26.0), (312.0, 64.0)]  # 8 + 304 per unit
    assert [line for line in attributes(chart, "line", "x1", "x2", "y1", "y2") if line[2] >= 19] == [
        (84.0, 236.0, 26.0, 26.0),
        (8.0, 8.0, 19.0, 33.0),
    ]
    assert parsed(chart).find("desc").text == "a 0.500 between 0.250 and 0.750 against 0.000; b 1.000"
    assert attributes(bars, "rect", "x", "width") == [(8.0, 152.0)] and ">20 %</text>" in bars
    assert attributes(around, "rect", "x", "width") == [(129.6, 121.6)]  # from -2 to 0 on -4 .. 1


def test_no_name_and_no_number_breaks_a_chart():
    rows = [Rank(EVIL, math.nan), Rank("x" * 99, 0.5, (0.1, math.inf)), Rank("y", 7e9, base=-3.0)]

    chart = charts.ranks(rows, EVIL)

    assert parsed(chart).find("title").text == EVIL and "<script" not in chart and "nan" in chart
    assert len(list(parsed(chart).iter("circle"))) == 1
    assert max(len(text.text) for text in parsed(chart).iter("text")) <= charts.LONGEST
    assert "<script" not in charts.figure(EVIL, "") and parsed(charts.ranks([], "None")) is not None


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_round_evenly_spaced_and_within_their_axis(low, length, most):
    high = low + length

    found = charts.ticks(low, high, most)

    assert len(found) <= most
    gap = 1e-6 * max(abs(low), abs(high), length)
    assert all(low - gap <= tick <= high + gap for tick in found)
    if len(found) > 1 and length > 1e-3 * abs(low):
        apart = np.diff(found)
        np.testing.assert_allclose(apart, apart[0], rtol=1e-6)
        digits = f"{apart[0]:.6e}"
        assert float(digits[:8]) in (1, 2, 5)


def test_numbers_are_short_and_thinned_places_keep_both_ends():
    said = {
        0: "0",
        2e-5: "2e-5",
        0.00123: "0.00123",
        0.5: "0.5",
        12.345: "12.3",
        999.7: "1,000",
        2785: "2,785",
    }
    assert {value: charts.number(value) for value in said} == said

    places = charts.thinned(1000, 200)

    assert len(places) == 200 == len(set(places)) and (places[0], places[-1]) == (0, 999)
    assert charts.thinned(3, 200) == [0, 1, 2]
    assert [charts.window_of(steps) for steps in (1, 10, 20, 60, 1000)] == [1, 1, 3, 7, 101]

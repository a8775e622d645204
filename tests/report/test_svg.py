import re
from xml.etree import ElementTree

import numpy as np
import pytest

from smdtrack.report.svg import Curve, Frame, chart, legend

X = np.arange(100.0)


def drawn(text):
    """The points of the last curve, from the path's relative lines."""
    path = [element.get("d") for element in ElementTree.fromstring(text) if element.get("class") == "c0 solid"][-1]
    points, at = [], np.zeros(2)
    for kind, x, y in re.findall(r"([Ml])(-?[\d.]+) (-?[\d.]+)", path):
        at = np.array([float(x), float(y)]) + (at if kind == "l" else 0)
        points.append(at)
    return np.array(points), path


@pytest.mark.parametrize("logarithmic", [False, True])
def test_points_lie_where_the_values_are(logarithmic):
    y = 2 + np.sin(X / 10)
    frame = Frame("a chart", logarithmic=logarithmic)
    points, _ = drawn(chart([Curve(X, y, "c0 solid")], frame))
    level = np.log10(y) if logarithmic else y
    assert np.corrcoef(points[:, 0], X)[0, 1] == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(points[:, 1], level)[0, 1] == pytest.approx(-1, abs=1e-5)
    assert points[0, 0] == pytest.approx(frame.left, abs=0.06)
    assert points[:, 1].min() > 8
    assert points[:, 1].max() < frame.height - 20


def test_short_gaps_are_bridged_and_long_ones_are_not():
    y = np.ones(100)
    y[1::2] = np.nan
    _, path = drawn(chart([Curve(X, y, "c0 solid")], Frame("x")))
    assert path.count("M") == 1
    y[40:70] = np.nan
    _, path = drawn(chart([Curve(X, y, "c0 solid")], Frame("x")))
    assert path.count("M") == 2


def test_values_near_zero_do_not_flatten_a_logarithmic_chart():
    y = np.full(100, 1.0)
    y[:5] = 1e-12
    points, _ = drawn(chart([Curve(X, y, "c0 solid")], Frame("x", logarithmic=True)))
    assert points[:, 1].max() <= 150 - 20
    assert points[50, 1] < 30


def test_nothing_to_draw():
    text = chart([Curve(X, np.full(100, np.nan), "c0 solid")], Frame("empty"))
    assert "no values" in text
    assert "no values" in chart([], Frame("empty"))
    ElementTree.fromstring(text)


def test_one_value_and_constant_values():
    for y in (np.array([3.0]), np.zeros(1), np.full(1, 1e-9)):
        drawn = chart([Curve(np.ones(1), y, "c0 solid")], Frame("x"))
        ElementTree.fromstring(drawn)
        assert "nan" not in drawn
        assert "inf" not in drawn


def test_names_are_escaped():
    ElementTree.fromstring(chart([Curve(X, X, "c0 solid")], Frame('<&">')))
    assert "&lt;b&gt;" in legend([Curve(X, X, "c0 solid", "<b>")])

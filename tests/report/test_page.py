import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from smdtrack import SmdtrackError
from smdtrack.record.opened_run import OpenedRun
from smdtrack.record.sources import open_run
from smdtrack.report.comparison import compare
from smdtrack.report.facts import facts_of
from smdtrack.report.page import page, write_page
from smdtrack.report.page_data import PageData, as_script
from smdtrack.report.page_view import view_of
from tests.report.large_runs import large_run
from tests.report.synthetic_runs import NAMES, make_record

HOSTILE = ("<script>alert(1)</script>", "a\"onload='alert(1)'", "</script><b>", "é漢字\u202e", "w" * 400, "&lt;{}%")
#: Elements that have no end tag.
VOID = {"meta", "input", "br"}


class Tree(HTMLParser):
    """Checks that every element is closed where it should be, and collects tags, attributes and text."""

    def __init__(self, document):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def opened(tmp_path, name="base", **options):
    return open_run(str(make_record(tmp_path / name, **options)))


def data_of(document):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', document, re.S)[1])


def test_one_run_has_all_parts(tmp_path):
    run = opened(tmp_path, lags=(4,))
    document = page(view_of([run], None))
    tree = Tree(document)
    said = " ".join(tree.text)
    for part in ("Overview", "How to read this", "All weights, by stage", "Schedule and time constants", "Settings"):
        assert part in said
    assert facts_of(run).summary.verdict in said
    assert tree.tags.count("script") == 2
    data = data_of(document)
    assert data["weights"] == list(NAMES)
    assert [chart["title"] for chart in data["charts"]] == [
        "Angular update per step",
        "Norm",
        "The two forces on the squared norm, per step",
        "Effective gradient: norms of gradient x weight",
        "Memory of the updates",
        "Angle over 4 steps",
    ]


def test_nothing_is_fetched(tmp_path):
    document = page(view_of([opened(tmp_path)], None))
    tree = Tree(document)
    assert "link" not in tree.tags
    assert "iframe" not in tree.tags
    targets = [value for name, value in tree.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert dict(tree.attributes)["content"] is not None
    assert "default-src 'none'" in document
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", document)


@pytest.mark.parametrize("count", [1, 2])
def test_hostile_names_stay_names(tmp_path, count):
    runs = [
        opened(tmp_path, f"r{index}", names=HOSTILE, params={"model": HOSTILE[0], HOSTILE[1]: HOSTILE[2]})
        for index in range(count)
    ]
    comparison = (
        compare([facts_of(run, letter) for run, letter in zip(runs, "AB", strict=False)]) if count > 1 else None
    )
    document = page(view_of(runs, comparison))
    tree = Tree(document)
    assert tree.tags.count("script") == 2
    assert "b" not in {tag for tag in tree.tags if "</b>" not in document} or tree.tags.count("b") == document.count(
        "<b>"
    )
    assert not {name for name, _ in tree.attributes if name.startswith("on")}
    assert data_of(document)["weights"] == list(HOSTILE)
    for name in HOSTILE:
        assert any(name in text for text in tree.text), name


def test_curves_keep_values_to_a_ten_thousandth(tmp_path):
    import base64

    run = opened(tmp_path, every=1).run
    data = PageData()
    for family in ("angle", "norm"):
        column = run.values[family][:, 2]
        place, low, high, logarithmic = data.curve(column)
        levels = np.frombuffer(base64.b64decode(data.pool[place]), "<u2").astype(float)
        decoded = np.exp(low + (levels - 1) / 65534 * (high - low))
        assert logarithmic
        np.testing.assert_allclose(decoded, column, rtol=1e-4)
    assert data.curve(np.full(5, np.nan)) is None
    assert data.curve(np.array([0.0, np.nan, 1.0]))[3] == 0


def test_equal_curves_are_kept_once():
    data = PageData()
    assert data.curve(np.array([1.0, 2.0]))[0] == data.curve(np.array([10.0, 20.0]))[0]
    assert len(data.pool) == 1


def test_json_cannot_end_its_script():
    text = as_script({"name": "</script><!-- & \u2028"})
    assert "<" not in text
    assert "&" not in text
    assert json.loads(text) == {"name": "</script><!-- & \u2028"}


@pytest.mark.parametrize(("weights", "megabytes"), [(60, 4), (300, 12)])
def test_weight_of_the_page(weights, megabytes):
    assert len(page(view_of([large_run(weights, 2000)], None)).encode()) < megabytes * 1e6


def test_a_run_without_samples_lines_or_divergence(tmp_path):
    empty = opened(tmp_path, "empty", steps=2, status="running")
    assert "nothing was measured" in page(view_of([empty], None))
    diverged = opened(tmp_path, "diverged", nan_from=1)
    assert "the training diverged" in page(view_of([diverged], None))
    whole = opened(tmp_path, "whole")
    bare = {family: table for family, table in whole.run.values.items() if family in ("angle", "norm")}
    run = type(whole.run)(**{**whole.run.__dict__, "values": bare})
    Tree(page(view_of([OpenedRun(run, "local record", "here")], None)))


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(SmdtrackError, match=r"^cannot write .*no/page.html: No such file or directory$"):
        write_page(tmp_path / "no" / "page.html", [opened(tmp_path)])

"""The saved view's state: its content, its size, and what is left alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smdtrack.sinks import mlflow_view
from smdtrack.sinks.mlflow_view import (
    MAX_CHARACTERS,
    TAG_PREFIX,
    decode,
    encode,
    knows_named_views,
    layers_in,
    layers_of,
    merged,
    stage_of,
    tag_value,
    view_state,
    views,
    write_views,
)
from tests.sinks.synthetic import make_info

GOLDEN = Path(__file__).with_name("golden_view.json")


def layers(count: int) -> dict[str, frozenset[str]]:
    return layers_of(make_info(Path("record"), count).weights)


def test_golden_state() -> None:
    """What MLflow gets, in full; after a change that was seen in a browser, write the new state there."""
    value = tag_value(views(layers(3))[0], named=True, now=1.0)
    envelope = json.loads(value)
    assert (envelope["name"], envelope["createdAt"], envelope["updatedAt"]) == (mlflow_view.VIEW_NAME, 1000, 1000)
    assert decode(value) == json.loads(GOLDEN.read_text())


def test_every_weight_has_its_lines_and_the_measured_curve_comes_first() -> None:
    state = view_state(layers(15))
    cards = [card["selectedMetricKeys"] for card in state["compareRunCharts"]]
    for weight in make_info(Path("record"), 15).weights:
        assert [f"angle/{weight.key}", f"angle_eq/{weight.key}", f"angle_pred/{weight.key}"] in cards
        assert [f"norm/{weight.key}", f"norm_eq/{weight.key}"] in cards
    assert all(len(keys) <= 4 for keys in cards)
    assert [(section["name"], section["display"]) for section in state["compareRunSections"][:4]] == [
        ("smdtrack: overview", True),
        ("conv1", False),
        ("layer1", False),
        ("layer2", False),
    ]
    assert not any(section["display"] for section in state["compareRunSections"][1:])
    sections = [section["uuid"] for section in state["compareRunSections"]]
    assert {card["metricSectionId"] for card in state["compareRunCharts"]} <= set(sections)
    assert len(set(sections)) == len(sections)


def test_a_weight_without_a_line_has_its_measured_curves() -> None:
    info = make_info(Path("record"), 1)
    state = view_state(layers_of([replace(info.weights[0], line_kind="none")]))
    assert [card["selectedMetricKeys"] for card in state["compareRunCharts"][-2:]] == [["angle/conv1"], ["norm/conv1"]]


@pytest.mark.parametrize("count", [1, 15, 53, 200, 700])
def test_views_stay_small_and_show_every_layer_once(count: int) -> None:
    made = views(layers(count))
    shown = [layers_in(view.state) for view in made]
    assert [name for part in shown for name in part] == list(layers(count))
    for view in made:
        assert len(encode(view.state)) <= MAX_CHARACTERS
        assert len(tag_value(view, named=True)) <= 20_000
    assert len({view.key for view in made}) == len({view.name for view in made}) == len(made)
    has_overview = [view.state["compareRunSections"][0]["name"] == "smdtrack: overview" for view in made]
    assert has_overview == [True] + [False] * (len(made) - 1)


def test_views_are_split_only_when_they_must() -> None:
    assert len(views(layers(53))) == 1
    made = views(layers(53), limit=1500)
    assert len(made) > 2
    assert all(len(encode(view.state)) <= 1500 for view in made)
    assert made[1].state["compareRunSections"][0]["display"]


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("conv1", "conv1"),
        ("layer1.0.conv1", "layer1"),
        ("stages.2.blocks.0.conv", "stages.2"),
        ("blocks.3.0.conv_pw", "blocks.3"),
        ("stem.conv", "stem"),
        ("features.12", "features"),
        ("module_list.0.a", "module_list.0"),
    ],
)
def test_stages(key: str, stage: str) -> None:
    assert stage_of(key) == stage


@pytest.mark.parametrize(
    ("version", "named"), [("3.14.9", False), ("3.15.0", True), ("3.17.2", True), ("4.0.0rc1", True), ("odd", False)]
)
def test_versions(version: str, named: bool) -> None:
    assert knows_named_views(version) is named


def test_before_named_views_the_state_is_bare() -> None:
    view = views(layers(3))[0]
    assert tag_value(view, named=False) == encode(view.state)
    assert decode(tag_value(view, named=False)) == view.state


def test_merging_keeps_the_order_and_adds_families() -> None:
    assert list(merged({"b": frozenset({"angle"})}, {"a": frozenset(), "b": frozenset({"norm"})})) == ["b", "a"]
    assert merged({"b": frozenset({"angle"})}, {"b": frozenset({"norm"})}) == {"b": {"angle", "norm"}}


class TestWriting:
    @pytest.fixture
    def client(self, store: str) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=store)

    @pytest.fixture
    def experiment(self, client: Any) -> str:
        return str(client.create_experiment("smdtrack"))

    def test_twice_is_once(self, client: Any, experiment: str) -> None:
        assert write_views(client, experiment, layers(15), "3.17.2") == ["smdtrack-v1"]
        before = client.get_experiment(experiment).tags
        assert write_views(client, experiment, layers(15), "3.17.2") == ["smdtrack-v1"]
        assert write_views(client, experiment, layers(3), "3.17.2") == ["smdtrack-v1"]
        assert client.get_experiment(experiment).tags == before

    def test_other_weights_join(self, client: Any, experiment: str) -> None:
        write_views(client, experiment, layers(3), "3.17.2")
        write_views(client, experiment, {"fc": frozenset({"angle"})}, "3.17.2")
        tag = client.get_experiment(experiment).tags[TAG_PREFIX + "smdtrack-v1"]
        assert layers_in(decode(tag)) == {**layers(3), "fc": {"angle"}}

    def test_many_weights_make_several_views(self, client: Any, experiment: str) -> None:
        keys = write_views(client, experiment, layers(700), "3.17.2")
        assert len(keys) > 1
        tags = client.get_experiment(experiment).tags
        shown = [name for key in keys for name in layers_in(decode(tags[TAG_PREFIX + key]))]
        assert shown == list(layers(700))

    def test_a_tag_that_is_none_of_ours_is_said(self, client: Any, experiment: str) -> None:
        client.set_experiment_tag(experiment, TAG_PREFIX + "smdtrack-v1", "broken")
        with pytest.raises(ValueError, match="not a deflated view state"):
            write_views(client, experiment, layers(3), "3.17.2")

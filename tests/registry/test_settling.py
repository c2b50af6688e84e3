"""Whom a version has to beat, and what keeps it from an alias, read from a registry."""

import pytest

from tasks.errors import WorkRefused
from tasks.promotion.decision import _not_rolled_back, _standing
from tasks.registry import lookup
from tasks.registry.champions import label, to_beat
from tasks.registry.client import connect

NAME = "desk"


@pytest.fixture
def desk(tracking_uri, run, versions_of):
    """Four versions and a way to tag them; version 2 is in production."""
    versions_of(NAME, 4)
    client = connect(tracking_uri)
    client.set_registered_model_alias(NAME, "production", "2")

    def tag(**tags):
        for key, value in tags.items():
            what, _, number = key.rpartition("_")
            client.set_model_version_tag(NAME, number, what, value)

    tag.uri, tag.client = tracking_uri, client
    tag.version = lambda number: lookup.find(tracking_uri, NAME, version=number)
    return tag


CASES = {
    "other weights": ({"weights_2": "v"}, "desk/2"),
    "weights that nobody names": ({}, "desk/2"),
    "the candidate's weights, first in production": ({"weights_2": "w", "champion_2": ""}, ""),
    "the candidate's weights, in place of others": ({"weights_2": "w", "champion_2": "desk/1"}, "desk/1"),
    "the candidate's weights twice": (
        {"weights_2": "w", "champion_2": "desk/3", "weights_3": "w", "champion_3": "desk/1"},
        "desk/1",
    ),
    "a circle": ({"weights_2": "w", "champion_2": "desk/3", "weights_3": "w", "champion_3": "desk/2"}, ""),
    "a champion that is gone": ({"weights_2": "w", "champion_2": "desk/9"}, ""),
    "a tag that names no version": ({"weights_2": "w", "champion_2": "anything/²"}, ""),
    "a version of another name": ({"weights_2": "w", "champion_2": "other/1"}, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_the_version_to_beat_is_production_or_what_its_equal_weights_were_compared_with(desk, case):
    tags, expected = CASES[case]
    desk(**tags)
    assert label(to_beat(desk.version(2), "w", desk.uri)) == expected


def test_with_nothing_in_production_there_is_nothing_to_beat(desk):
    assert to_beat(None, "w", desk.uri) is None


def test_a_report_that_compares_with_another_version_is_not_enough(desk):
    desk(weights_3="w", weights_2="v", weights_4="v", champion_2="desk/1")
    third, fourth, second = desk.version(3), desk.version(4), desk.version(2)
    assert _standing(third, second, "desk/2", desk.uri) == 2
    assert _standing(fourth, second, "desk/1", desk.uri) == 2
    assert _standing(second, second, "desk/9", desk.uri) == 2, "it is there already"
    assert _standing(third, None, "", desk.uri) == 0
    with pytest.raises(WorkRefused, match="production is desk/2 now, but the candidate was compared with no champion"):
        _standing(third, second, "", desk.uri)
    with pytest.raises(
        WorkRefused, match=r"desk/2 now \(the candidate's weights, which were compared with desk/1\), but"
    ):
        _standing(fourth, second, "", desk.uri)
    with pytest.raises(WorkRefused, match="production is empty now, but the candidate was compared with desk/2"):
        _standing(third, None, "desk/2", desk.uri)


def test_what_was_rolled_back_does_not_come_back_by_itself_nor_under_another_number(desk):
    desk(weights_2="v", weights_3="w", weights_4="w", rolled_back_3="truncated")
    (own,) = _not_rolled_back(desk.version(3), desk.version(2), desk.uri)
    (other,) = _not_rolled_back(desk.version(4), desk.version(2), desk.uri)
    assert own.reason.startswith("Version 3 was rolled back: truncated.")
    assert other.reason.startswith("Version 3 was rolled back and has the same weights: truncated.")
    assert not own.passed and not other.passed
    assert _not_rolled_back(desk.version(2), desk.version(2), desk.uri) == []


def test_weights_that_are_in_production_were_not_what_was_rolled_back(desk):
    desk(weights_2="w", weights_3="w", weights_4="w", rolled_back_3="answers were cut")
    assert _not_rolled_back(desk.version(4), desk.version(2), desk.uri) == []
    assert len(_not_rolled_back(desk.version(3), desk.version(2), desk.uri)) == 1

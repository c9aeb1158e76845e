"""What a checkpoint was trained with, in words, and what it is asked for besides."""

import pytest

from sam_lora.model.trained_prompts import describe, trained_kinds, untrained_note

POINTS = {(1, False), (2, False), (3, False)}


@pytest.mark.parametrize(("header", "expected"), [
    pytest.param({"prompt": "3 points"}, {(3, False)}, id="an earlier version's"),
    pytest.param({"prompt": "1-3 points and box"}, {(1, True), (2, True), (3, True)}, id="points and box"),
    pytest.param({"prompt": "box"}, {(0, True)}, id="box"),
    pytest.param({"prompt": "3 points", "prompt_mix": {"other_points": 1.0, "box": 0.0}, "correction_rounds": 1},
                 {(3, False), (4, False)}, id="other points and a corrective click"),
    pytest.param({"prompt": "5 points", "prompt_mix": {"table": 0.0, "points": 1.0, "box": 1.0}},
                 POINTS | {(0, True)}, id="simulated alone"),
    pytest.param({"prompt": "3 points", "prompt_mix": {"box_and_points": 2.0}, "correction_rounds": 2},
                 {(count, True) for count in range(1, 6)}, id="boxes with points"),
])
def test_trained_kinds(header, expected):
    assert trained_kinds(header) == expected


@pytest.mark.parametrize(("kinds", "words"), [
    ({(3, False)}, "3 points"), ({(1, False)}, "1 point"), (POINTS | {(0, True)}, "1-3 points, a box"),
    ({(0, True), (1, True), (2, True)}, "a box, a box with 1-2 points"), ({(1, True)}, "a box with 1 point")])
def test_kinds_in_words(kinds, words):
    assert describe(kinds) == words


def test_only_what_was_not_trained_is_noted():
    header = {"prompt": "3 points", "prompt_mix": {"table": 1.0}, "correction_rounds": 0}
    assert untrained_note(header, {(3, False)}) is None
    assert untrained_note(header, {(3, False), (0, True)}) == (
        "prompts here are a box, which this checkpoint was not trained with (3 points); train.py simulates other kinds "
        "by default (--prompt_mix)")

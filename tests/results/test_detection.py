"""detection.py: how well objects were found."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.results.detection import average_precision, best_threshold, outcomes, precision_recall, scores_at
from sam_lora.results.found import FoundObject, ScannedPhoto, decode_mask, encode_mask

SIZE = (40, 50)     # (h, w)


def box_mask(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return encode_mask(mask)


def found(box, score, name="disc") -> FoundObject:
    return FoundObject(name, score, box_mask(*box), box)


def photo(found=(), truth=()) -> ScannedPhoto:
    return ScannedPhoto(Path("a.png"), "a.png", SIZE[::-1], tuple(found),
                        tuple((name, box_mask(*box)) for name, box in truth), 0.1)


A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30)


def test_masks_come_back():
    mask = np.random.default_rng(0).random(SIZE) > 0.5
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)


def test_perfect():
    photos = [photo([found(A, 0.9), found(B, 0.8)], [("disc", A), ("disc", B)])]
    assert vars(average_precision(photos)) == {"ap": 1, "ap50": 1, "ap75": 1, "ar100": 1}
    scores = scores_at(photos, 0.5)
    assert (scores.hits, scores.false, scores.missed, scores.f1, scores.count_error) == (2, 0, 0, 1, 0)


def test_half_of_it():
    """One of two found, and one thing that is not there."""
    photos = [photo([found(A, 0.9), found(C, 0.3)], [("disc", A), ("disc", B)]), photo([found(C, 0.95)])]
    scores = scores_at(photos, 0.5)
    assert (scores.hits, scores.false, scores.missed) == (1, 1, 1)
    assert (scores.precision, scores.recall, scores.f1) == (0.5, 0.5, 0.5)
    assert scores.count_error == 1 and scores.false_on_background == 1
    assert average_precision(photos).ar100 == pytest.approx(0.5)


def test_another_class_is_no_hit_unless_classes_do_not_count():
    photos = [photo([found(A, 0.9, "bar")], [("disc", A)])]
    assert scores_at(photos, 0.5).hits == 0 and average_precision(photos).ap == 0
    assert scores_at(photos, 0.5, class_agnostic=True).hits == 1
    assert average_precision(photos, class_agnostic=True).ap == pytest.approx(1)


def test_an_object_is_hit_once_by_the_best_score():
    results = outcomes([photo([found(A, 0.6), found((0, 0, 10, 9), 0.7)], [("disc", A)])])
    assert [(outcome.found.score, outcome.hit) for outcome in results] == [(0.7, True), (0.6, False)]
    assert results[1].iou == 1.0


def test_the_best_threshold_lies_below_the_last_worthwhile_score():
    photos = [photo([found(A, 0.9), found(B, 0.6), found(C, 0.2)], [("disc", A), ("disc", B)])]
    assert best_threshold(photos) == pytest.approx(0.4)
    assert best_threshold([photo([found(C, 0.9)], [("disc", A)])], fallback=0.3) == 0.3
    assert best_threshold([photo()], fallback=0.3) == 0.3


def test_nothing_to_find_is_no_number_and_nothing_found_is_zero():
    assert np.isnan(average_precision([photo()]).ap)
    assert average_precision([photo([], [("disc", A)])]).ap == 0


def test_precision_falls_as_recall_rises():
    photos = [photo([found(A, 0.9), found(C, 0.8), found(B, 0.7)], [("disc", A), ("disc", B)])]
    assert precision_recall(photos, outcomes(photos)) == ([0.5, 0.5, 1.0], [1.0, 0.5, pytest.approx(2 / 3)])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.floats(0.01, 0.99)), max_size=6), st.floats(0, 1))
def test_counts_add_up(things, threshold):
    photos = [photo([found(box, score) for box, score in things], [("disc", A), ("disc", B)])]
    scores = scores_at(photos, threshold)
    assert scores.hits + scores.missed == 2
    assert scores.hits + scores.false == sum(score >= threshold for _, score in things)
    assert scores_at(photos, best_threshold(photos, 1.0)).f1 >= scores.f1 - 1e-9

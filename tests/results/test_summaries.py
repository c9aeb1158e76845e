"""summaries.py: by class and by size, checked by hand."""

import pandas as pd
import pytest

from sam_lora import contracts
from sam_lora.results.summaries import size_of, summarise, summarise_sizes


def test_summary_by_hand():
    results = pd.DataFrame({"class_name": ["b", "a", "b", "b"], "iou": [0.2, 0.9, 0.5, 0.8], "dice": [0.3, 1, 0.6, 0.9],
                            "boundary_iou": [0.1, 0.7, 0.2, 0.3]})
    expected = pd.DataFrame([
        ("a", 1, 0.9, 0.9, 0.9, 1, 0.7, 0),
        ("b", 3, 0.5, 0.5, 0.2 + 0.1 * 0.3, 0.6, 0.2, 1 / 3),
        ("all classes (by object)", 4, 0.6, 0.65, 0.2 + 0.15 * 0.3, 0.7, 0.325, 0.25),
        ("all classes (by class)", 2, 0.7, 0.7, 0.565, 0.8, 0.45, 1 / 6),
    ], columns=contracts.SUMMARY_COLUMNS)
    pd.testing.assert_frame_equal(summarise(results), expected, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize(("area", "size"), [
    (0, "small"), (1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (10 ** 8, "large")])
def test_sizes_are_coco_s(area, size):
    assert size_of(area) == size


def test_summary_by_size_by_hand():
    results = pd.DataFrame({"size": ["large", "small", "large"], "iou": [0.2, 0.9, 0.4], "dice": [0.3, 1, 0.5],
                            "boundary_iou": [0.1, 0.7, 0.2]})
    nan = float("nan")
    expected = pd.DataFrame([
        ("small", "under 1024", 1, 0.9, 0.9, 0.9, 1, 0.7, 0), ("medium", "1024 to 9215", 0, *[nan] * 6),
        ("large", "9216 and more", 2, 0.3, 0.3, 0.21, 0.4, 0.15, 1)], columns=contracts.SIZE_SUMMARY_COLUMNS)
    pd.testing.assert_frame_equal(summarise_sizes(results), expected, atol=1e-6, check_dtype=False)

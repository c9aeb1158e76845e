import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from sam_lora.data.rle import rle_runs, rle_to_mask

masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 13)))


@settings(max_examples=80, deadline=None)
@given(masks)
def test_both_forms_of_rle_give_the_mask_back(mask: np.ndarray):
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs
    assert rle_runs(compressed["counts"]) == runs
    for counts in (runs, compressed["counts"], compressed["counts"].decode()):
        decoded = rle_to_mask({"size": list(mask.shape), "counts": counts})
        assert decoded.dtype == bool and np.array_equal(decoded, mask)


def test_long_compressed_runs():
    mask = np.zeros((700, 1100), np.uint8)
    mask[:, 300:900] = 1
    mask[100:650, 400:420] = 0
    compressed = coco_mask.encode(np.asfortranarray(mask))
    assert np.array_equal(rle_to_mask(compressed), mask.astype(bool))


@pytest.mark.parametrize(("rle", "reason"), [
    pytest.param({"size": [4, 6], "counts": [10, 4]}, "add up", id="sum under the size: pycocotools reads wild memory"),
    pytest.param({"size": [4, 6], "counts": [10, 40]}, "add up", id="sum over the size"),
    pytest.param({"size": [4, 6], "counts": [30, -6]}, "whole numbers", id="negative"),
    pytest.param({"size": [4, 6], "counts": [10.5, 13.5]}, "whole numbers", id="fractions"),
    pytest.param({"size": [4, 6], "counts": ["24"]}, "whole numbers", id="text in the list"),
    pytest.param({"size": [4, 6], "counts": "zzz"}, "damaged", id="no RLE text"),
    pytest.param({"size": [4, 6], "counts": "PPPPPPPPPPPP"}, "damaged", id="a number that never ends"),
    pytest.param({"size": [4, 6], "counts": "ü"}, "damaged", id="not ASCII"),
    pytest.param({"size": [4, 6], "counts": "3"}, "add up", id="compressed, too short"),
    pytest.param({"size": [4, 6], "counts": ""}, "add up", id="no runs"),
    pytest.param({"size": [4, 6]}, "without counts", id="counts missing"),
    pytest.param({"size": [4], "counts": [24]}, "size", id="one size"),
    pytest.param({"size": [0, 6], "counts": []}, "size", id="no height"),
    pytest.param({"size": [10**6, 10**6], "counts": [10**12]}, "megapixels", id="huge"),
    pytest.param({"counts": [24]}, "size", id="size missing"),
])
def test_rle_that_pycocotools_must_not_see(rle: dict, reason: str):
    with pytest.raises(ValueError, match=reason):
        rle_to_mask(rle)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=12), st.integers(1, 9), st.integers(1, 9))
def test_any_bytes_are_a_mask_or_a_reason(counts: bytes, height: int, width: int):
    try:
        mask = rle_to_mask({"size": [height, width], "counts": counts})
    except ValueError as error:
        assert "RLE" in str(error)
    else:
        assert mask.shape == (height, width)

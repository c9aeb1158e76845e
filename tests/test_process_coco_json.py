"""process_coco_dataset.py: what is read of a JSON file, and JSON of other shapes."""

import json
import tracemalloc
from array import array
from pathlib import Path

import numpy as np
import pytest
from data_set_builder import SQUARE, annotation, run_coco, write_json, write_photo
from hypothesis import given, settings
from hypothesis import strategies as st

from process_coco_dataset import KEPT_KEYS, read_coco_json, slim
from sam_lora.errors import UserError


def test_numbers_are_packed(tmp_path: Path):
    rle = {"size": [1, 2], "counts": [0, 2]}
    path = write_json(tmp_path / "a.json", [annotation(segmentation=[SQUARE, [1, True, "x"]]),
                                            annotation(segmentation=rle, keypoints=[1] * 9)])
    first, second = read_coco_json(path, tmp_path).annotations
    assert first["segmentation"] == [array("d", SQUARE), [1, True, "x"]]
    assert second["segmentation"] == {"size": [1, 2], "counts": array("d", [0, 2])} and "keypoints" not in second


def test_of_a_large_file_only_what_is_needed_stays_in_memory(tmp_path: Path):
    """The text once, and packed numbers, 8 bytes for each of 7 characters; as lists it was seven times the file."""
    outline = np.random.default_rng(0).uniform(100, 999, 400).round(2).tolist()
    path = write_json(tmp_path / "a.json", [annotation(segmentation=[outline], keypoints=[1.5] * 99,
                                                       attributes={"text": "x" * 900})] * 1000)
    tracemalloc.start()
    read = read_coco_json(path, tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read.annotations) == 1000 and read.annotations[0].keys() == {
        "id", "image_id", "category_id", "iscrowd", "bbox", "segmentation"}
    assert kept < path.stat().st_size and peak < 2.5 * path.stat().st_size


@pytest.mark.parametrize(("text", "said"), [
    pytest.param('{"images": [{"id": 1}], "images": [], "annotations": [], "categories": []}', "nothing to convert",
                 id="a key twice: the last counts"),
    pytest.param('{"images": [{"id": ' + "9" * 5000 + "}]}", "broken JSON .Exceeds the limit", id="5000 digits"),
    pytest.param('{"images": [' + '{"a":' * 50000, "broken JSON", id="objects too deep"),
    pytest.param('{"images": []} {"annotations": []}', "broken JSON .Extra data", id="two values"),
    pytest.param('{"images": [], "annotations": [], "categories": [', "broken JSON", id="cut off"),
    pytest.param('"images"', "no list of images, annotations, categories", id="a text"),
    pytest.param('[{"image_id": 1, "segmentation": [[1, 2]]}]', "found a list", id="a list of annotations"),
])
def test_json_of_other_shapes(tmp_path: Path, text: str, said: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        run_coco(tmp_path / "out", "--coco_json", tmp_path / "a.json")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_unicode(tmp_path: Path, encoding: str):
    write_photo(tmp_path / "a.jpg")
    path = write_json(tmp_path / "a.json", [annotation()], categories=[{"id": 1, "name": "裂缝"}])
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding))
    assert run_coco(tmp_path / "out", "--coco_json", path).class_name.tolist() == ["裂缝"]


def test_json_in_an_older_encoding_is_refused(tmp_path: Path):
    (tmp_path / "a.json").write_bytes('{"images": [], "categories": [{"id": 1, "name": "裂缝"}]}'.encode("gbk"))
    with pytest.raises(UserError, match=r"a\.json: broken JSON \(not UTF-8: .*save it as UTF-8"):
        run_coco(tmp_path / "out", "--coco_json", tmp_path / "a.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["id", "segmentation", "counts", "size", "other", "é"]), inner, max_size=4), max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["images", "segmentation", "counts", "other"]), json_values, max_size=4))
def test_slim_drops_keys_and_packs_numbers_and_changes_nothing_else(content: dict):
    def expected(value: object) -> object:
        if isinstance(value, dict):
            return {key: expected(inner) for key, inner in value.items() if key in KEPT_KEYS}
        return [*map(expected, value)] if isinstance(value, list) else value

    def unpacked(value: object) -> object:
        if isinstance(value, dict):
            return {key: unpacked(inner) for key, inner in value.items()}
        return [*map(unpacked, value)] if isinstance(value, list | array) else value
    assert unpacked(json.loads(json.dumps(content), object_hook=slim)) == expected(content)

"""Rows of a training table -> items and batches: geometry, padding, targets, and what bad rows get."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.data.samples import Sample, check_samples, read_samples
from sam_lora.errors import UserError
from sam_lora.model.batches import (
    Collate,
    PromptedImages,
    batches,
    group_rows,
    load_in_threads,
    make_loader,
    mask_to_target,
    read_image,
)
from sam_lora.model.meta import ResizeLongestSide

SIDE = 64


def write_sample(folder: Path, name: str, size_wh: tuple[int, int], box_xyxy: tuple[int, int, int, int]) -> dict:
    """An image whose object is white on grey, and its mask; the row of the training table."""
    width, height = size_wh
    x0, y0, x1, y1 = box_xyxy
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 255
    image = np.full((height, width, 3), 90, np.uint8)
    image[mask > 0] = (255, 200, 100)  # BGR
    assert cv2.imwrite(str(folder / f"{name}.png"), image) and cv2.imwrite(str(folder / f"{name}_mask.png"), mask)
    return {"image": f"{name}.png", "label": f"{name}_mask.png", "points": f"[[{x0},{y0}],[{x1 - 1},{y1 - 1}]]"}


def write_rows(folder: Path, rows: list[dict]) -> Path:
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """A wide image with two rows, a tall one between them, and a tiny one."""
    wide = write_sample(tmp_path, "wide", (128, 80), (16, 8, 64, 40))
    other = {**wide, "points": "[[100,70]]", "label": "wide_other.png"}
    mask = np.zeros((80, 128), np.uint8)
    mask[60:, 90:] = 255
    assert cv2.imwrite(str(tmp_path / "wide_other.png"), mask)
    return [wide, write_sample(tmp_path, "tall", (30, 96), (3, 6, 15, 48)), other,
            write_sample(tmp_path, "tiny", (12, 7), (2, 1, 9, 5))]


@pytest.fixture
def table(rows, tmp_path) -> Path:
    return write_rows(tmp_path, rows)


# ---- reading ------------------------------------------------------------------------------------------------

def test_samples_are_resolved_beside_the_table_and_keep_their_text(table, tmp_path):
    samples = read_samples(table)
    assert samples[1] == Sample(tmp_path / "tall.png", tmp_path / "tall_mask.png", ((3, 6), (14, 47)), (1, 1), None,
                                "tall.png", "tall_mask.png")


def test_optional_columns_and_empty_labels(table, rows, tmp_path):
    rows[0] |= {"point_labels": "[1,0]", "box": "[1,2,30,40]"}
    rows[1] |= {"points": "", "box": "[0,0,20,50.5]", "label": ""}
    samples = read_samples(write_rows(tmp_path, rows))
    assert (samples[0].point_labels, samples[0].box) == ((1, 0), (1, 2, 30, 40))
    assert (samples[1].points, samples[1].point_labels, samples[1].box) == ((), (), (0, 0, 20, 50.5))
    assert samples[1].label is None and samples[1].label_text == ""
    assert (samples[2].point_labels, samples[2].box) == ((1,), None)
    check_samples(samples, table, need_labels=False)


@pytest.mark.parametrize(("column", "text", "message"), [
    pytest.param("points", "[[1,2],[3]]", "row 3, column points: found", id="half a point"),
    pytest.param("points", "__import__('os')", "row 3, column points: found", id="code"),
    pytest.param("points", "[[1,NaN]]", "row 3, column points: found", id="not a number"),
    pytest.param("points", "", "row 3: neither points nor a box", id="no prompt"),
    pytest.param("point_labels", "[1]", "row 3, column point_labels: .* expected 2 labels", id="too few labels"),
    pytest.param("point_labels", "[1,2]", "row 3, column point_labels", id="label 2"),
    pytest.param("box", "[9,9,3,20]", "row 3, column box", id="box inside out"),
])
def test_cells_that_are_no_prompt(table, rows, tmp_path, column, text, message):
    rows[1][column] = text
    with pytest.raises(UserError, match=message):
        read_samples(write_rows(tmp_path, rows))


def test_check_samples_counts_all_bad_rows_and_names_the_first(table, rows, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    rows += [{**rows[0], "image": "gone.png"}, {**rows[0], "image": "text.png"}, {**rows[0], "label": rows[1]["label"]},
             {**rows[0], "points": "[[5,5],[128,79]]"}, {**rows[0], "label": ""}, {**rows[0], "box": "[128,0,140,10]"}]
    table = write_rows(tmp_path, rows)
    with pytest.raises(UserError) as error:
        check_samples(read_samples(table), table, need_labels=True)
    message = str(error.value)
    assert message.startswith(f"{table}: 6 of 10 rows cannot be used: row 6: gone.png: no such file; row 7: ")
    assert "text.png: not an image that can be read" in message
    assert "row 8: tall_mask.png is 30x96 px, but its image wide.png is 128x80 px; and 3 more rows" in message
    assert "\n" not in message


@pytest.mark.parametrize(("change", "message"), [
    pytest.param({"points": "[[5,5],[128,79]]"}, r"row 2: point \(128, 79\) lies outside wide.png \(128x80 px\)",
                 id="a point one pixel right of the image"),
    pytest.param({"points": "[[-0.5,5]]"}, r"point \(-0.5, 5\) lies outside", id="a point left of it"),
    pytest.param({"label": "", "points": "[[5,80]]"}, "no label", id="two mistakes: the first is told"),
    pytest.param({"box": "[128,0,140,10]"}, "row 2: box 128,0,140,10 lies outside wide.png", id="a box beside it"),
    pytest.param({"box": "[5,5,128,500]"}, "box 5,5,128,500 lies outside", id="a box that ends far below"),
    pytest.param({"box": "[-4000,5,90,40]"}, "box -4000,5,90,40 lies outside", id="a box from far left"),
    pytest.param({"box": "[-9,-9,999,999]"}, "box -9,-9,999,999 lies outside", id="a box around the picture"),
    pytest.param({"label": ""}, "row 2: no label; expected the path of a mask", id="no label"),
])
def test_check_samples_says_what_is_wrong(table, rows, tmp_path, change, message):
    rows[0] |= change
    table = write_rows(tmp_path, rows)
    with pytest.raises(UserError, match=message):
        check_samples(read_samples(table), table, need_labels=True)


@pytest.mark.parametrize("box", ["[0,0,128,80]", "[-0.6,-1,128.4,81]"])
def test_a_box_may_touch_or_graze_the_border(table, rows, tmp_path, box):
    """As detectors give them."""
    rows[0] |= {"box": box}
    table = write_rows(tmp_path, rows)
    check_samples(read_samples(table), table, need_labels=True)


def test_rows_without_a_label_are_checked_too(table, rows, tmp_path):
    rows[0] |= {"label": "", "points": "[[5,80]]"}
    table = write_rows(tmp_path, rows)
    with pytest.raises(UserError, match=r"row 2: point \(5, 80\) lies outside"):
        check_samples(read_samples(table), table, need_labels=False)


# ---- grouping -----------------------------------------------------------------------------------------------

@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=20), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_groups_hold_every_row_once_and_one_image_each(images, prompts_per_image):
    samples = [Sample(Path(name), None, ((0, 0),), (1,), None, name, "") for name in images]
    groups = group_rows(samples, prompts_per_image)
    assert sorted(row for group in groups for row in group) == list(range(len(images)))
    assert all(len({images[row] for row in group}) == 1 and group == sorted(group) for group in groups)
    expected = sum(-(-images.count(name) // prompts_per_image) for name in set(images))
    assert len(groups) == expected and max(map(len, groups)) <= prompts_per_image


# ---- items and batches ----------------------------------------------------------------------------------------

def test_one_batch_of_images_with_their_rows(table, tmp_path):
    dataset = PromptedImages(read_samples(table), SIDE, 8, with_targets=True, with_masks=True)
    assert len(dataset) == 3
    batch = Collate(SIDE)([dataset[i] for i in range(3)])
    assert batch.rows == [0, 2, 1, 3] and batch.image_index.tolist() == [0, 0, 1, 2]
    assert batch.original_sizes == [(80, 128), (96, 30), (7, 12)]
    assert batch.input_sizes.tolist() == [[40, 64], [64, 20], [37, 64]]  # longest side to 64, rounded
    assert batch.images.shape == (3, 3, 64, 64) and batch.images.dtype == torch.uint8
    for image, (height, width) in zip(batch.images, batch.input_sizes.tolist()):
        assert image[:, :height, :width].min() > 0
        assert not image[:, height:].any() and not image[:, :, width:].any()
    assert batch.images[0, :, 10, 20].tolist() == [100, 200, 255] and batch.images[0, 0, 30, 50] == 90  # RGB
    # prompts in the model frame, padded with -1
    assert batch.prompts.point_labels.tolist() == [[1, 1], [1, -1], [1, 1], [1, 1]]
    assert batch.prompts.point_coords[0].tolist() == [[8, 4], [31.5, 19.5]]
    assert batch.prompts.point_coords[1, 0].tolist() == [50, 35]
    torch.testing.assert_close(batch.prompts.point_coords[2, 1], torch.tensor([14 * 20 / 30, 47 * 64 / 96]))
    assert batch.prompts.boxes is None
    # targets in the model frame, masks at full size
    assert batch.targets.shape == (4, 64, 64) and batch.targets.dtype == torch.uint8
    ys, xs = np.nonzero(batch.targets[0].numpy())
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (8, 4, 32, 20)
    assert batch.targets[1, 30:40, 45:64].min() == 255 and not batch.targets[1, 40:].any()
    assert [mask.shape for mask in batch.masks] == [(80, 128), (80, 128), (96, 30), (7, 12)]
    assert [int(mask.sum()) for mask in batch.masks] == [48 * 32, 20 * 38, 12 * 42, 7 * 4]


def test_rows_beyond_prompts_per_image_travel_apart(table):
    dataset = PromptedImages(read_samples(table), SIDE, 1, with_targets=False, with_masks=False)
    batch = Collate(SIDE)([dataset[i] for i in range(len(dataset))])
    assert batch.rows == [0, 2, 1, 3] and batch.image_index.tolist() == [0, 1, 2, 3]
    assert torch.equal(batch.images[0], batch.images[1])
    assert batch.targets is None and batch.masks == []


def test_boxes_are_nan_where_a_row_has_none(rows, tmp_path):
    rows[1] |= {"points": "", "box": "[3,6,15,48]"}
    dataset = PromptedImages(read_samples(write_rows(tmp_path, rows)), SIDE, 8, False, False)
    batch = Collate(SIDE)([dataset[0], dataset[1]])
    assert batch.prompts.boxes[:2].isnan().all()
    torch.testing.assert_close(batch.prompts.boxes[2], torch.tensor([2, 4, 10, 32.0]))
    assert batch.prompts.point_labels.tolist() == [[1, 1], [1, -1], [-1, -1]]


def test_a_row_without_a_label_has_no_mask_and_the_others_keep_theirs(rows, tmp_path):
    rows[0]["label"] = ""
    dataset = PromptedImages(read_samples(write_rows(tmp_path, rows)), SIDE, 8, with_targets=False, with_masks=True)
    batch = Collate(SIDE)([dataset[i] for i in range(3)])
    assert batch.rows == [0, 2, 1, 3]
    assert [None if mask is None else int(mask.sum()) for mask in batch.masks] == [None, 20 * 38, 12 * 42, 7 * 4]


@pytest.mark.parametrize(("size_hw", "input_size"), [pytest.param((80, 128), (40, 64), id="reduced"),
                                                     pytest.param((20, 32), (40, 64), id="enlarged")])
def test_targets_keep_the_area(size_hw, input_size):
    mask = np.zeros(size_hw, dtype=bool)
    cv2.circle(view := mask.view(np.uint8), (size_hw[1] // 2, size_hw[0] // 2), size_hw[0] // 3, 1, -1)
    assert view.any()
    target = mask_to_target(mask, input_size)
    assert target.shape == input_size and target.dtype == np.uint8 and target.max() == 255
    assert target.mean() / 255 == pytest.approx(mask.mean(), rel=0.02)


def test_an_object_thinner_than_a_frame_pixel_leaves_a_trace():
    mask = np.zeros((400, 640), dtype=bool)
    mask[200, :] = True
    target = mask_to_target(mask, (40, 64))
    assert target[20].min() > 20 and not np.delete(target, 20, axis=0).any()  # a tenth of the pixel


# ---- the loader -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_gives_the_same_batches_with_and_without_workers(table, num_workers):
    dataset = PromptedImages(read_samples(table), SIDE, 8, with_targets=True, with_masks=True)
    loaded = list(batches(make_loader(dataset, SIDE, 2, num_workers, pin_memory=False)))
    assert [batch.rows for batch in loaded] == [[0, 2, 1], [3]]
    assert torch.equal(loaded[0].images, Collate(SIDE)([dataset[0], dataset[1]]).images)


def test_kept_features_take_the_place_of_images(table, tmp_path):
    """An image whose features are kept is not decoded: its file may even be broken. The others are."""
    kept = {tmp_path / "tall.png": (torch.full((2, 3), 7.0), (96, 30))}
    (tmp_path / "tall.png").write_bytes(b"no image")
    samples = read_samples(table)
    dataset = PromptedImages(samples, SIDE, 8, with_targets=True, with_masks=False, read_features=kept.get)
    plain = PromptedImages(samples, SIDE, 8, with_targets=True, with_masks=False)
    batch = Collate(SIDE)([dataset[i] for i in range(3)])
    assert batch.decoded == [0, 2] and batch.features.tolist() == [[[0.0] * 3] * 2, [[7.0] * 3] * 2, [[0.0] * 3] * 2]
    assert torch.equal(batch.images, Collate(SIDE)([plain[0], plain[2]]).images)
    assert batch.input_sizes.tolist() == [[40, 64], [64, 20], [37, 64]] and len(batch.targets) == 4
    alone = Collate(SIDE)([dataset[1]])
    assert alone.images is None and alone.decoded == []


def test_the_epoch_of_a_key_reaches_augmentation(table):
    seen = []
    dataset = PromptedImages(read_samples(table), SIDE, 8, True, False,
                             augment=lambda item, epoch: seen.append((item.rows, epoch)) or item)
    assert dataset[(3, 0)].rows == [0, 2] and dataset[1].rows == [1]
    assert seen == [([0, 2], 3), ([1], 0)]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("spoil", "message"), [
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:200]), "tall.png: broken image", id="cut short"),
    pytest.param(lambda path: path.unlink(), "tall.png: no such file", id="gone"),
    pytest.param(lambda path: cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8)),
                 "tall_mask.png: is 30x96 px, expected 9x9 px", id="replaced by another size"),
])
def test_a_file_that_breaks_after_the_check_is_one_error_in_this_process(table, tmp_path, num_workers, spoil, message):
    samples = read_samples(table)
    check_samples(samples, table, need_labels=True)
    spoil(tmp_path / "tall.png")
    dataset = PromptedImages(samples, SIDE, 8, with_targets=True, with_masks=False)
    with pytest.raises(UserError, match=message) as error:
        list(batches(make_loader(dataset, SIDE, 1, num_workers, pin_memory=False)))
    assert "\n" not in str(error.value)


def test_threads_load_the_batches_that_they_are_told_to(table):
    images = PromptedImages(read_samples(table), SIDE, 8, with_targets=True, with_masks=True)
    order = [[2, 0], [1]]
    threads = list(batches(load_in_threads(images, SIDE, order, pin_memory=False, threads=2)))
    loader = list(batches(make_loader(images, SIDE, 1, 0, False, batch_sampler=order)))
    assert [batch.rows for batch in threads] == [batch.rows for batch in loader] == [[3, 0, 2], [1]]
    for ours, theirs in zip(threads, loader, strict=True):
        for name in ("images", "input_sizes", "image_index", "targets"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert torch.equal(ours.prompts.point_coords, theirs.prompts.point_coords)


def test_a_broken_file_that_a_thread_meets_is_raised_where_batches_are_used(table, tmp_path):
    images = PromptedImages(read_samples(table), SIDE, 8, with_targets=False, with_masks=False)
    (tmp_path / "tall.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"tall\.png"):
        list(batches(load_in_threads(images, SIDE, [[0], [1, 2]], pin_memory=False, threads=2)))


@pytest.mark.parametrize(("width", "height"), [
    pytest.param(40, 23, id="enlarged"), pytest.param(150, 201, id="reduced"), pytest.param(64, 5, id="as large")])
def test_an_image_is_resized_as_by_segment_anything(width, height, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    assert cv2.imwrite(str(tmp_path / "image.png"), image[:, :, ::-1])
    resized, size = read_image(tmp_path / "image.png", ResizeLongestSide(SIDE))
    assert size == (height, width)
    np.testing.assert_array_equal(resized.permute(1, 2, 0).numpy(), ResizeLongestSide(SIDE).apply_image(image))

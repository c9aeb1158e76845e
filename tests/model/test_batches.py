"""Rows of a training table -> items and batches: geometry, padding, targets, and what bad rows get."""

import json
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
from sam_lora.model.augment import augmentation_draws, draw_points_anew, jitter_colours, mirror
from sam_lora.model.batches import (
    Collate,
    PromptedImages,
    ShardedBatches,
    batches,
    group_rows,
    make_loader,
    mask_to_target,
)

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
    pytest.param({"label": ""}, "row 2: no label; expected the path of a mask", id="no label"),
])
def test_check_samples_says_what_is_wrong(table, rows, tmp_path, change, message):
    rows[0] |= change
    table = write_rows(tmp_path, rows)
    with pytest.raises(UserError, match=message):
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


def test_shuffling_follows_its_generator(table):
    dataset = PromptedImages(read_samples(table), SIDE, 1, False, False)

    def order(seed: int) -> list:
        loader = make_loader(dataset, SIDE, 1, 0, False, torch.Generator().manual_seed(seed))
        return [batch.rows for batch in batches(loader)]
    orders = [order(seed) for seed in range(6)]
    assert order(0) == orders[0] and len({json.dumps(one) for one in orders}) > 1
    assert all(sorted(one) == [[0], [1], [2], [3]] for one in orders)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 5), world_size=st.integers(1, 4), seed=st.integers(0, 9))
def test_shards_are_the_whole_batch_cut_up(count, batch_size, world_size, seed):
    def sampler(batch: int, rank: int, world: int, fill: bool) -> ShardedBatches:
        return ShardedBatches(count, batch, rank, world, torch.Generator().manual_seed(seed), fill)
    whole = list(sampler(batch_size * world_size, 0, 1, False))
    assert sorted(index for batch in whole for index in batch) == list(range(count))
    shards = [sampler(batch_size, rank, world_size, True) for rank in range(world_size)]
    parts = [list(shard) for shard in shards]
    for number, batch in enumerate(whole):  # every process has a part in every step, and the parts are the batch
        own = [part[number][:shard.share(number)] for part, shard in zip(parts, shards)]
        assert [index for part in own for index in part] == batch
        assert all(len(part[number]) == max(1, shard.share(number)) for part, shard in zip(parts, shards))
    assert all(len(part) == len(shard) == len(whole) for part, shard in zip(parts, shards))
    kept = [sampler(batch_size, rank, world_size, False) for rank in range(world_size)]
    assert sorted(index for shard in kept for batch in shard for index in batch) == list(range(count))
    assert all(len(list(shard)) == len(shard) for shard in kept)


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


# ---- augmentation -------------------------------------------------------------------------------------------

def whole_batch(table: Path):
    dataset = PromptedImages(read_samples(table), SIDE, 8, True, False)
    return Collate(SIDE)([dataset[i] for i in range(len(dataset))])


@pytest.mark.parametrize(("rows_flip", "columns_flip"), [(False, False), (True, False), (False, True), (True, True)])
def test_mirroring_moves_picture_target_points_and_box_alike_and_leaves_the_padding(rows, tmp_path, rows_flip,
                                                                                      columns_flip):
    rows[0]["box"], rows[1]["box"] = "[16,8,64,40]", "[3,6,15,48]"
    batch = whole_batch(write_rows(tmp_path, rows))
    draws = torch.tensor([[0.0 if rows_flip else 0.9, 0.0 if columns_flip else 0.9]]).expand(len(rows), 2)
    mirrored = mirror(batch, draws)
    flips = [axis for axis, wanted in ((1, rows_flip), (2, columns_flip)) if wanted]
    for before, after, (height, width) in zip(batch.images, mirrored.images, batch.input_sizes.tolist()):
        assert torch.equal(after[:, :height, :width], before[:, :height, :width].flip(flips))
        assert not after[:, height:].any() and not after[:, :, width:].any()
    for place, (image, target) in enumerate(zip(mirrored.image_index.tolist(), mirrored.targets)):
        height, width = batch.input_sizes[image].tolist()
        assert torch.equal(target[None, :height, :width], batch.targets[place, None, :height, :width].flip(flips))
        for (x, y), (new_x, new_y) in zip(batch.prompts.point_coords[place], mirrored.prompts.point_coords[place]):
            assert new_x == (width - 1 - x if columns_flip else x) and new_y == (height - 1 - y if rows_flip else y)
        x0, y0, x1, y1 = mirrored.prompts.boxes[place].tolist()
        if not np.isnan(x0):  # the box is still the object's own
            ys, xs = np.nonzero(target.numpy() > 127)
            assert np.allclose((x0, y0, x1, y1), (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), atol=1)


def test_jitter_changes_colours_by_the_factors_drawn_and_leaves_the_padding(table):
    batch = whole_batch(table)
    draws = torch.full((4, 7), 0.5, dtype=torch.float64)
    assert torch.equal(jitter_colours(batch, draws, 0.4).images, batch.images)
    draws[1, -3] = 0.75                                   # brightness 1.2 for row 1, the second image
    images = jitter_colours(batch, draws, 0.4).images
    assert torch.equal(images[[0, 2]], batch.images[[0, 2]])
    height, width = batch.input_sizes[1].tolist()
    expected = (batch.images[1, :, :height, :width].float() * 1.2).clamp(max=255)
    assert (images[1, :, :height, :width].float() - expected).abs().max() <= 1
    assert not images[1, :, height:].any() and not images[1, :, :, width:].any()
    draws[1, -3:] = torch.tensor([0.5, 0.5, 0.0])         # saturation 0.6: channels move towards one another
    pale = jitter_colours(batch, draws, 0.4).images[1, :, :height, :width].float()
    before = batch.images[1, :, :height, :width].float()
    assert (pale.std(dim=0).mean() / before.std(dim=0).mean()).item() == pytest.approx(0.6, abs=0.05)
    draws[1, -3:] = torch.tensor([0.5, 0.0, 0.5])         # contrast 0.6
    flat = jitter_colours(batch, draws, 0.4).images[1, :, :height, :width].float()
    assert (flat.std() / before.std()).item() < 0.85


def test_rows_of_one_image_are_mirrored_together_and_half_of_the_images_are(table):
    batch = whole_batch(table)
    draws = augmentation_draws(read_samples(table), torch.Generator().manual_seed(3))
    assert batch.image_index.tolist() == [0, 0, 1, 2] and batch.rows[:2] == [0, 2]
    draws[2, :2] = 1 - draws[0, :2]  # what the image's second row would decide does not count
    images, targets = mirror(batch, draws).images, mirror(batch, draws).targets
    wanted = [axis for axis in (0, 1) if draws[0, axis] < 0.5]
    height, width = batch.input_sizes[0].tolist()
    for place in (0, 1):
        assert torch.equal(targets[place, :height, :width], batch.targets[place, :height, :width].flip(wanted))
    assert torch.equal(images[0, 0, :height, :width], batch.images[0, 0, :height, :width].flip(wanted))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_new_points_lie_in_the_object_and_nothing_else_changes(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("rows")
    rows = [write_sample(folder, "wide", (128, 80), (16, 8, 64, 40)),
            write_sample(folder, "tiny", (12, 7), (2, 1, 9, 5))]
    rows[0] |= {"point_labels": "[1,0]", "box": "[16,8,64,40]"}
    rows[1] |= {"points": "[[3,2],[4,2],[5,3]]", "point_labels": "[1,1,1]", "box": ""}
    table = write_rows(folder, rows)
    batch = whole_batch(table)
    draws = augmentation_draws(read_samples(table), torch.Generator().manual_seed(seed))
    drawn = draw_points_anew(batch, draws, 1.0)
    before, after = batch.prompts.point_coords, drawn.prompts.point_coords
    assert torch.equal(after[0, 1:], before[0, 1:])                       # the background point, and no third one
    assert torch.equal(drawn.prompts.point_labels, batch.prompts.point_labels)
    for place, points in ((0, after[0, :1]), (1, after[1])):
        for x, y in points.int().tolist():
            assert drawn.targets[place, y, x] >= 128
    assert torch.equal(draw_points_anew(batch, draws, 0.0).prompts.point_coords, before)


def test_every_pixel_of_the_object_is_equally_likely(tmp_path):
    table = write_rows(tmp_path, [write_sample(tmp_path, "small", (SIDE, SIDE), (5, 7, 9, 10))])  # 12 pixels, scale 1
    batch = whole_batch(table)
    generator = torch.Generator().manual_seed(0)
    found = [tuple(point) for _ in range(600) for point in
             draw_points_anew(batch, augmentation_draws(read_samples(table), generator), 1.0)
             .prompts.point_coords[0].int().tolist()]
    counts = [found.count((x, y)) for y in range(7, 10) for x in range(5, 9)]
    assert sum(counts) == 1200 and min(counts) > 60 and max(counts) < 145


def test_an_object_thinner_than_a_frame_pixel_still_gets_its_points(tmp_path):
    row = write_sample(tmp_path, "thin", (SIDE * 4, SIDE), (20, 30, 220, 31))
    table = write_rows(tmp_path, [row | {"points": "[[30,30],[90,30]]"}])
    batch = whole_batch(table)
    assert batch.targets.max() < 128
    points = draw_points_anew(batch, augmentation_draws(read_samples(table), torch.Generator().manual_seed(1)), 1.0)
    assert all(batch.targets[0, y, x] == batch.targets.max() for x, y in points.prompts.point_coords[0].int().tolist())

"""photos.py: all objects of a photo, from rows that have one each."""

import numpy as np
import pytest
from class_folder_builder import write_manifest

from sam_lora.data.imaging import write_png
from sam_lora.data.photos import count_whole, group_photos, photo_key, visible_objects
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError

SIZE = (40, 60)     # (h, w)


def sample(root, image: str, label: str | None) -> Sample:
    points = ((1.0, 1.0),) if label else ()
    return Sample(root / image, root / label if label else None, points, (1,) * len(points), None, image, label or "")


def write_mask(path, box, size_hw=SIZE) -> None:
    x0, y0, x1, y1 = box
    mask = np.zeros(size_hw, bool)
    mask[y0:y1, x0:x1] = True
    write_png(path, mask)


def test_a_photo_of_two_classes_lies_in_two_folders(tmp_path):
    for folder, box in (("Class_disc", (0, 0, 10, 10)), ("Class_bar", (20, 5, 50, 9))):
        write_mask(tmp_path / folder / "masks/a_0000.png", box)
    samples = [sample(tmp_path, f"{folder}/images/a.png", f"{folder}/masks/a_0000.png")
               for folder in ("Class_disc", "Class_bar")]
    assert list(group_photos(samples).values()) == [[0, 1]]
    (shown,) = visible_objects(samples).values()
    assert [thing.class_name for thing in shown] == ["disc", "bar"]
    assert [int(thing.mask((60, 40)).sum()) for thing in shown] == [100, 120]


def test_an_image_outside_class_folders_is_its_own_photo(tmp_path):
    samples = [sample(tmp_path, "one/a.png", "m/1.png"), sample(tmp_path, "two/a.png", "m/2.png"),
               sample(tmp_path, "one/a.png", "m/3.png")]
    assert list(group_photos(samples).values()) == [[0, 2], [1]]
    assert photo_key(samples[0]) != photo_key(samples[1])


def test_a_tile_shows_its_neighbours_objects_too(tmp_path):
    """Two tiles of 40 px, 30 apart; an object that belongs to the right one shows at the left one's edge."""
    rows = []
    for x0, name, box in ((0, "a.tile.0.0", (0, 0, 5, 5)), (30, "a.tile.30.0", (0, 10, 20, 20))):
        write_mask(tmp_path / f"Class_0_disc/masks/{name}_0000.png", box, (40, 40))
        rows.append({"image_path": f"Class_0_disc/images/{name}.png",
                     "mask_path": f"Class_0_disc/masks/{name}_0000.png", "class_id": 0, "class_name": "disc",
                     "source_image": "a.jpg", "source_split": "", "source_id": f"row {x0}", "source_width": 70,
                     "source_height": 40, "crop_x0": x0, "crop_y0": 0, "crop_x1": x0 + 40, "crop_y1": 40})
    write_manifest(tmp_path, rows)
    samples = [sample(tmp_path, row["image_path"], row["mask_path"]) for row in rows]
    left, right = visible_objects(samples).values()
    shown = [thing.mask((40, 40)) for thing in left]
    assert [int(mask.sum()) for mask in shown] == [25, 100]
    assert shown[1][10:20, 30:40].all()
    assert [int(thing.mask((40, 40)).sum()) for thing in right if thing.mask((40, 40)).any()] == [200]


@pytest.mark.parametrize("lacks", ["nothing", "mask", "class"])
def test_a_tile_shows_what_belongs_to_a_neighbour_that_the_table_leaves_out(tmp_path, lacks):
    """As the tiles in the gaps of a split by area: the middle one of three."""
    rows = []
    for x0, box in ((0, (0, 0, 5, 5)), (30, (0, 10, 20, 20)), (60, (30, 30, 40, 40))):
        name, folder = f"a.tile.{x0}.0", "Class_1_bar" if lacks == "class" and x0 == 30 else "Class_0_disc"
        write_mask(tmp_path / f"{folder}/masks/{name}_0000.png", box, (40, 40))
        rows.append({"image_path": f"{folder}/images/{name}.png", "mask_path": f"{folder}/masks/{name}_0000.png",
                     "class_id": 0, "class_name": folder.split("_")[2], "source_image": "a.jpg", "source_split": "",
                     "source_id": f"row {x0}", "source_width": 100, "source_height": 40, "crop_x0": x0, "crop_y0": 0,
                     "crop_x1": x0 + 40, "crop_y1": 40})
    write_manifest(tmp_path, rows)
    if lacks == "mask":
        (tmp_path / rows[1]["mask_path"]).unlink()
    samples = [sample(tmp_path, row["image_path"], row["mask_path"]) for row in (rows[0], rows[2])]
    areas = [[int(thing.mask((40, 40)).sum()) for thing in shown] for shown in visible_objects(samples).values()]
    assert areas == ([[25, 100], [100, 0]] if lacks == "nothing" else [[25], [100]])


def test_pieces_of_one_object_are_one(tmp_path):
    rows = []
    for x0 in (0, 30):
        name = f"a.tile.{x0}.0"
        write_mask(tmp_path / f"Class_0_disc/masks/{name}_0000.png", (0, 0, 40, 4), (40, 40))
        rows.append({"image_path": f"Class_0_disc/images/{name}.png",
                     "mask_path": f"Class_0_disc/masks/{name}_0000.png", "class_id": 0, "class_name": "disc",
                     "source_image": "a.jpg", "source_split": "", "source_id": "row 1", "source_width": 70,
                     "source_height": 40, "crop_x0": x0, "crop_y0": 0, "crop_x1": x0 + 40, "crop_y1": 40})
    write_manifest(tmp_path, rows)
    samples = [sample(tmp_path, row["image_path"], row["mask_path"]) for row in rows]
    for shown in visible_objects(samples).values():
        assert [int(thing.mask((40, 40)).sum()) for thing in shown] == [160]


def test_a_background_photo_shows_nothing_and_is_whole(tmp_path):
    samples = [sample(tmp_path, "background/images/b.png", None)]
    assert list(visible_objects(samples).values()) == [[]]
    assert count_whole(samples) == 1


def test_which_rows_show_whole_photos(tmp_path):
    samples = [sample(tmp_path, "Class_disc/images/a.png", "Class_disc/masks/a_0000.png"),
               sample(tmp_path, "Class_disc/images/a.tile.0.0.png", "Class_disc/masks/a.tile.0.0_0001.png"),
               sample(tmp_path, "Class_disc/images/a_0001.png", "Class_disc/masks/a_0001.png"),   # a crop
               sample(tmp_path, "elsewhere/a.png", "elsewhere/a_mask.png")]
    assert [count_whole([one]) for one in samples] == [1, 1, 0, 0]


def test_a_mask_of_another_size_is_an_error(tmp_path):
    write_mask(tmp_path / "Class_disc/masks/a_0000.png", (0, 0, 3, 3))
    (shown,) = visible_objects([sample(tmp_path, "Class_disc/images/a.png", "Class_disc/masks/a_0000.png")]).values()
    with pytest.raises(UserError, match="is 60x40 px, expected 50x40 px"):
        shown[0].mask((50, 40))

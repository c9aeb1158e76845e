import re
from pathlib import Path

import pytest

from sam_lora.data.file_names import COPY, FRAME, TILE, Origin, origins

README = Path(__file__).resolve().parents[2] / "README.md"
UUID = "5f3c2a1b-9c1d-4e2f-8a3b-0123456789ab"


def origin(stem, *beside):
    return origins([stem, *beside])[0]


@pytest.mark.parametrize(("stem", "photo", "kind"), [
    pytest.param("217_jpg.rf.3bd02c57a72f11db", "217_jpg", COPY, id="Roboflow"),
    pytest.param("image_0012_aug3", "image_0012", COPY, id="_aug3"),
    pytest.param("image_0012-aug-3", "image_0012", COPY, id="-aug-3"),
    pytest.param("image_0012_aug_3_1", "image_0012", COPY, id="_aug_3_1"),
    pytest.param("image_0012_augmented", "image_0012", COPY, id="_augmented"),
    pytest.param("wall_aug_0fa31c", "wall", COPY, id="_aug_<hex>"),
    pytest.param("aug_3_wall", "wall", COPY, id="aug_3_ in front"),
    pytest.param("augmented_wall 12", "wall 12", COPY, id="augmented_ in front"),
    pytest.param("aug_12_53210", "aug_12", COPY, id="Keras"),
    pytest.param(f"images_original_wall7.jpg_{UUID}", "wall7", COPY, id="Augmentor"),
    pytest.param("wall copy 2", "wall", COPY, id="copy on a Mac"),
    pytest.param("wall - Copy (2)", "wall", COPY, id="copy on Windows"),
    pytest.param("Copy of wall", "wall", COPY, id="copy on Google Drive"),
    pytest.param("photo_0_0_512_512", "photo", TILE, id="SAHI"),
    pytest.param("DSC_0012_410_820_922_1332", "DSC_0012", TILE, id="SAHI, a number in the photo's name"),
    pytest.param("photo.tile.768.0", "photo", TILE, id="this project"),
    pytest.param("P0706__1__0___824", "P0706", TILE, id="DOTA"),
    pytest.param("P0706__0.5__0___824", "P0706", TILE, id="DOTA, scaled"),
    pytest.param("ortho_tile_12", "ortho", TILE, id="_tile_12"),
    pytest.param("ortho-tile12-3", "ortho", TILE, id="-tile12-3"),
    pytest.param("ortho_patch_0_512", "ortho", TILE, id="_patch"),
    pytest.param("ortho_crop3", "ortho", TILE, id="_crop3"),
    pytest.param("patient7_slice_034", "patient7", TILE, id="_slice"),
    pytest.param("cells_z07", "cells", TILE, id="a stack"),
    pytest.param("ortho_chip_3_4", "ortho", TILE, id="_chip with row and column"),
    pytest.param("ortho_r3_c12", "ortho", TILE, id="row and column"),
    pytest.param("ortho_row03_col12", "ortho", TILE, id="row and column in words"),
    pytest.param("ortho_x512_y1024", "ortho", TILE, id="x and y"),
    pytest.param("tile_0_3_ortho", "ortho", TILE, id="tile_0_3_ in front"),
    pytest.param("drive7_frame_000123", "drive7", FRAME, id="_frame_"),
    pytest.param("drive7-frame12", "drive7", FRAME, id="-frame"),
    pytest.param("frame_000123", "", FRAME, id="a frame of whatever video"),
    pytest.param("GX0100.mp4_frame_12", "GX0100", FRAME, id=".mp4_frame_"),
    pytest.param("ortho_tile_x0_y512", "ortho", TILE, id="_tile_x_y"),
    pytest.param("ortho_i0_j3", "ortho", TILE, id="_i_j"),
    pytest.param("ortho.jpg_0_0_512_512", "ortho.jpg", TILE, id="SAHI behind the ending"),
    pytest.param(f"wall_aug_{UUID}", "wall", COPY, id="_aug_<uuid>"),
    pytest.param("GX0100.mp4_12", "GX0100", FRAME, id=".mp4_"),
    pytest.param("GX0100_mp4-12_jpg.rf.3bd02c57a72f11db", "GX0100", COPY, id="Roboflow's frame of a video"),
    pytest.param("video_3_0012", "video_3", FRAME, id="video"),
    pytest.param("clipA-0012", "clipA", FRAME, id="clip"),
    pytest.param("drive7_f00012", "drive7", FRAME, id="_f00012"),
    pytest.param("drive7_t12.5s", "drive7", FRAME, id="a time in seconds"),
    pytest.param("drive7_00h01m12s", "drive7", FRAME, id="a time in hours"),
    pytest.param("drive7_frame_12_0_0_512_512_aug1", "drive7", COPY, id="a copy of a tile of a frame"),
])
def test_names_that_say_it_by_themselves(stem, photo, kind):
    found = origin(stem)
    assert (found.photo, found.kinds[:1]) == (photo, (kind,))


@pytest.mark.parametrize(("stem", "beside"), [(stem, beside) for stem, *beside in (
    ("image_0012", "image_0013"), ("IMG_20230101_123456", "IMG_20230101_123500"), ("DJI_0001", "DJI_0002"),
    ("2023_1_5_12_30_45", "2023_1_5_12_30_46"), ("000000123456",), ("aachen_000000_000019", "aachen_000001_000019"),
    ("video_0001", "video_0002"), ("window_12",), ("tile_012", "tile_013"), ("crop_7",), ("b-1-61-",), ("photo_1_2",),
    ("apple_rot_012", "apple_rot_013", "apple_scab_003"), ("road_dark",), ("crack (12)", "crack (13)"),
    ("augusta_3",), ("aug_0012", "aug_0013"), ("frames",), ("photocopy",), ("grid_3_4",), ("photo_0_1", "photo_0_0"),
    ("a_100_0_50_50",), ("wall_1_0_0_512",), ("face_1_1", "face_1_2", "face_2_1"), ("run_0_0", "run_0_1", "run_0_2"),
    ("a_0_0", "a_0_9", "a_9_0"))], ids=lambda value: value if isinstance(value, str) else "")
def test_names_of_different_photos(stem, beside):
    """Of cameras, data sets, fruit rot, and files numbered by Windows."""
    assert origin(stem, *beside) == Origin(stem, (), None, stem)


@pytest.mark.parametrize(("stem", "beside", "photo"), [
    pytest.param("wall_hflip", ["wall"], "wall", id="its photo is there"),
    pytest.param("wall_flip_h", ["wall_rot90"], "wall", id="another effect is there"),
    pytest.param("wall_rot_90", ["wall_rot_180"], "wall", id="another turn is there"),
    pytest.param("wall_rotated-15deg", ["wall"], "wall", id="degrees"),
    pytest.param("wall_bright_0.8", ["wall_noisy2"], "wall", id="strengths"),
    pytest.param("wall_flip_rot90", ["wall"], "wall", id="two effects"),
    pytest.param("wall_flip_jpg.rf.3bd02c57a72f11db", ["wall_jpg.rf.9bd02c57a72f11db"], "wall", id="by Roboflow again"),
    pytest.param("wall (1)", ["wall"], "wall", id="a download of the photo that is there"),
    pytest.param("aug_0012", ["0012"], "0012", id="of a photo that is a number"),
    pytest.param("ortho_0_512", ["ortho_0_0", "ortho_512_0"], "ortho", id="tiles from 0 0 on"),
    pytest.param("ortho_0000_0512", ["ortho_0000_0000"], "ortho", id="tiles with leading zeros"),
    pytest.param("ortho_1_0", ["ortho_0_0", "ortho_1_1"], "ortho", id="a grid, one of four without objects"),
])
def test_names_that_need_others_beside_them(stem, beside, photo):
    assert origin(stem, *beside).looked_for == photo
    assert origin(stem).kinds == () or ".rf." in stem


def readme_rows():
    """(what is recognised, the names) of the README's table."""
    section = README.read_text(encoding="utf-8").split("\n### Which files are one photo\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    return [(what, re.findall(r"`([^`]+)\.jpg`", names)) for what, names in rows], re.findall(
        r"`([^`]+)\.jpg`", section.partition("Mere numbers")[2].partition(". If")[0])


def test_the_readme_lists_names_as_they_are():
    rows, others = readme_rows()
    assert [what.split(",")[0] for what, _ in rows] == ["exported copies", "augmented copies", "effects",
                                                        "copies by hand", "slices and tiles", "video frames"]
    assert sum(len(names) for _, names in rows) > 40
    for _, names in rows:
        for name in {*names} - {"wall"}:
            beside = {"wall_0_512": ["wall_0_0"],
                      "wall_2_3": [f"wall_{row}_{column}" for row in range(3) for column in range(3)],
                      }.get(name, ["wall"])
            found = origin(name, *beside)
            assert found.kinds and found.looked_for in (
                {"aug_12_5321": "aug_12", "video_3_0012": "video_3", "clipA-0012": "clipA", "frame_0012": ""}.get(
                    name, "wall"),), name
    assert len(others) == 4 and not any(origin(name, *others).kinds for name in others)


@pytest.mark.parametrize(("stem", "place"), [
    ("photo_410_0_922_512", {"x": 410, "y": 0, "x1": 922, "y1": 512}), ("ortho_y20_x512", {"x": 512, "y": 20}),
    ("ortho_r3_c12", {"row": 3, "column": 12}),
    ("ortho_tile_3_4", {"a": 3, "b": 4}), ("drive7_frame_0123", {"number": 123}), ("ortho_tile_3", None),
    ("photo_410_0_922_512_aug1", None), ("P1__1__0___824", {"x": 0, "y": 824}), ("P1__0.5__0___824", None)])
def test_places(stem, place):
    assert origin(stem).place == place


def test_long_names_of_any_text_take_no_time():
    """Patterns with two ways to read the same text would not end here."""
    for text in ("1" * 250, "_1" * 120, "aug" * 80, "_flip" * 50, "a_" * 120, "frame" * 50, "_0_0_64_64" * 25,
                 "_aug1" * 50):
        for end in ("", "x", "_", "\n"):
            origins([text + end])

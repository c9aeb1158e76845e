"""process_yolo_to_classwise.py: each label row is an object or a reason."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_set_builder import BOX_ONLY, HEIGHT, POLYGON, WIDTH, add_photo, run_yolo, skip_reasons
from hypothesis import given, settings
from hypothesis import strategies as st

from process_yolo_to_classwise import RowError, parse_label_row

SQUARE = (0.25, 0.2, 0.75, 0.2, 0.75, 0.6, 0.25, 0.6)


@pytest.mark.parametrize(("line", "class_id", "polygon"), [
    pytest.param(f"0 {POLYGON}", 0, SQUARE, id="plain"),
    pytest.param(f"  1.0\t{POLYGON}  \r", 1, SQUARE, id="float id, tabs, trailing blanks"),
    pytest.param("1.000e+00 2.5e-1 2e-1 .75 .2 7.5E-1 0.6 +0.25 0.6", 1, SQUARE, id="scientific"),
    pytest.param(f"0 {POLYGON} 0.25 0.2", 0, SQUARE, id="closed"),
    pytest.param(f"0 {POLYGON} 0.93", 0, SQUARE, id="with confidence"),
    pytest.param("3 0.5 0.4 0.5 0.4", 3, SQUARE, id="box"),
    pytest.param("3 0.5 0.4 0.5 0.4 0.9", 3, SQUARE, id="box with confidence"),
    pytest.param("0 -0.2 0 1.3 0 1.3 1", 0, (-0.2, 0, 1.3, 0, 1.3, 1), id="out of the photo"),
    pytest.param("-1 0 0 1 0 1 1", -1, (0, 0, 1, 0, 1, 1), id="negative id, refused later"),
])
def test_parse_label_row(line: str, class_id: int, polygon: tuple):
    row = parse_label_row(line)
    assert row.class_id == class_id and tuple(row.polygon) == pytest.approx(polygon)
    assert row.is_box == ("box" in line or len(line.split()) in (5, 6))


@pytest.mark.parametrize(("line", "reason"), [
    pytest.param("0", "too few", id="class only"),
    pytest.param("0 0.1 0.2 0.3", "too few", id="three numbers"),
    pytest.param("0 0.1 0.1 0.1 0.1 0.1 0.1", "three different points", id="one point"),
    pytest.param("0 0.1 0.1 0.9 0.9 0.1 0.1 0.9 0.9", "three different points", id="two points"),
    pytest.param("0 0.1 0.1 0.5 0.1 0.9 0.1", "zero area", id="a line"),
    pytest.param("0 0.5 0.5 0.0 0.3", "zero area", id="box without width"),
    pytest.param("0 120 80 320 80 320 200", "pixel coordinates", id="pixels"),
    pytest.param("0 nan 0.1 0.5 0.1 0.9 0.4", "NaN", id="NaN"),
    pytest.param("0 0.1 0.1 inf 0.1 0.9 0.4", "infinity", id="infinity"),
    pytest.param("0 0.1 0.1 1_0 0.1 0.9 0.4", "not a number", id="underscore"),
    pytest.param("0 0.1 x 0.5 0.1 0.9 0.4", "not a number", id="letters"),
    pytest.param("crack 0.1 0.1 0.5 0.1 0.9 0.4", "class name", id="class name"),
    pytest.param("0.5 0.1 0.1 0.5 0.1 0.9 0.4", "whole number", id="half a class"),
    pytest.param("0, 0.1, 0.1, 0.5, 0.1, 0.9, 0.4", "commas", id="commas"),
    pytest.param("0 rle 640 480 abc", "RLE", id="rle"),
])
def test_rows_that_are_no_object(line: str, reason: str):
    with pytest.raises(RowError, match=reason):
        parse_label_row(line)


number = st.floats(-0.2, 1.2).map(lambda value: f"{value:.6g}")
token = st.one_of(number, st.sampled_from(["nan", "1e400", "-", "", "x", "0x1", "٣", "\x00"]), st.text(max_size=4))


@settings(max_examples=150, deadline=None)
@given(st.lists(token, min_size=1, max_size=14).map(" ".join).filter(str.strip))
def test_any_line_is_a_row_or_a_reason(line: str):
    try:
        row = parse_label_row(line)
    except RowError as error:
        assert str(error)
    else:
        assert len(row.polygon) >= 6 and len(row.polygon) % 2 == 0 and np.isfinite(row.polygon).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=12, unique=True), st.integers(0, 99))
def test_a_written_polygon_is_read_back(points: list, class_id: int):
    centre = np.mean(points, axis=0)
    points.sort(key=lambda point: np.arctan2(*(point - centre)))  # outlines do not cross themselves
    flat = [value for point in points for value in point]
    if len(set(flat[::2])) == 1 or len(set(flat[1::2])) == 1:
        return
    assert tuple(parse_label_row(" ".join(map(repr, [class_id, *flat]))).polygon) == tuple(flat)


def test_rows_of_a_file(tmp_path: Path):
    """Byte order mark, CRLF, blank lines, a row twice, classes without a name: each row once in crops or report."""
    root, out = tmp_path / "set", tmp_path / "out"
    rows = f"\ufeff0 {POLYGON}\r\n\r\n0 {POLYGON}\r\n7 {POLYGON}\r\n-1 {POLYGON}\r\n1 0.1 0.1 0.9 0.1 0.5 0.9\r\n"
    add_photo(root, "images/a.jpg", "labels/a.txt", rows.encode() + b"0 \xff\xfe 0.1 0.2 0.2 0.3 0.3\r\n")
    manifest = run_yolo(root, out, "--class_names", "x", "y")
    assert manifest.source_id.tolist() == ["labels/a.txt:1", "labels/a.txt:6"]
    report = pd.read_csv(out / "conversion_report.csv")
    assert report[["source_id", "reason"]].to_numpy().tolist() == [
        ["labels/a.txt:3", "the same row twice"], ["labels/a.txt:4", "class id that has no name"],
        ["labels/a.txt:5", "class id that has no name"], ["labels/a.txt:7", "something that is not a number"]]


# ---- every rule of shared/formats.md that no test above names ---------------------------------------------

@pytest.mark.parametrize(("rows", "crops", "skipped", "note"), [
    pytest.param(f"0 {POLYGON}\n0 0.5 0.5 0.4 0.4\n1 {POLYGON}\n", 2, [BOX_ONLY], "", id="box rows among polygons"),
    pytest.param(f"0 {POLYGON}\n0 0.5 0.5 0.4 0.4 0.9\n", 1, [BOX_ONLY], "", id="box and confidence, six tokens"),
    pytest.param(f"0 {POLYGON} 0.87\n", 1, [], "taken for a confidence", id="polygon and confidence"),
    pytest.param(f"0 {POLYGON}\n0 0.1 0.1 0.5 0.5 0.9 0.9\n", 1, ["covers no pixel of the photo"], "",
                 id="zero area along a diagonal"),
    pytest.param("0 -0.005 0.2 1.009 0.2 1.009 0.6 -0.005 0.6\n", 1, [], "", id="out of the photo by under 1 %"),
    pytest.param("0 -0.3 0.2 1.4 0.2 1.4 0.6 -0.3 0.6\n", 1, [], "was clipped", id="far out of the photo: clipped"),
    pytest.param(f"0 {POLYGON}\n2 {POLYGON}\n-1 {POLYGON}\n", 1, ["class id that has no name"] * 2, "",
                 id="class id of no name, and a negative one: never the last name"),
    pytest.param(f"0 {POLYGON}\n0 {POLYGON}\n1 {POLYGON}\n", 2, ["the same row twice"], "", id="duplicate rows"),
    pytest.param("0 0.1 0.1 0.4 0.1 0.4 0.4\n0 0.6 0.6 0.9 0.6 0.9 0.9\n", 2, [], "", id="one row, one object"),
    pytest.param("1 0.1 0.1 0.9 0.15 0.85 0.9 0.15 0.8\n", 1, [], "", id="OBB: nine tokens are a polygon"),
    pytest.param(f"0 rle 50 80 abc\n0 {POLYGON}\n", 1, ["RLE, which YOLO labels do not have"], "", id="RLE row"),
    pytest.param(f"\ufeff1.000e+00  {POLYGON} \r\n\r\n  \r\n", 1, [], "",
                 id="byte order mark, class 1.000e+00, CRLF, blank lines"),
    pytest.param(f"0 1e308 0.1 0.5 0.1 0.9 0.4\n0 {POLYGON}\n", 1,
                 ["NaN, infinity or something that is not a number"], "", id="1e308 is as good as infinity"),
])
def test_rules_of_label_rows(tmp_path: Path, capsys: pytest.CaptureFixture, rows: str, crops: int, skipped: list[str],
                             note: str):
    add_photo(tmp_path / "set", "images/a.jpg", "labels/a.txt", rows)
    manifest = run_yolo(tmp_path / "set", tmp_path / "out", "--class_names", "x", "y")
    assert len(manifest) == crops and skip_reasons(tmp_path / "out") == skipped
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert note in "".join(notes) and bool(note) == bool(notes)


PLAIN = "0.2 0.3 0.5 0.3 0.5 0.6 0.2 0.6"


@pytest.mark.parametrize("row", [
    pytest.param(f"0 {PLAIN} 0.87 1", id="confidence and track id 1 behind it"),
    pytest.param(f"0 {PLAIN} 0.87 3", id="confidence and track id 3"),
    pytest.param(f"0 1952 {PLAIN}", id="instance id before it, as in yolov5#11476"),
    pytest.param(f"0 1 {PLAIN}", id="instance id 1"),
    pytest.param(f"0 0 {PLAIN}", id="flag 0"),
    pytest.param(f"0 0.35 0.45 0.3 0.3 {PLAIN}", id="its box before it"),
    pytest.param(f"0 0.2 0.3 0.5 0.6 {PLAIN} 0.5", id="corners of its box before it, confidence behind it"),
    pytest.param(f"0 12 {PLAIN} 0.87 40", id="instance id, confidence and track id"),
])
def test_extra_numbers_leave_area_and_crop(tmp_path: Path, capsys: pytest.CaptureFixture, row: str):
    crops = []
    for name, text in (("plain", f"0 {PLAIN}\n"), ("extra", f"{row}\n")):
        add_photo(tmp_path / name, "images/a.jpg", "labels/a.txt", text)
        manifest = run_yolo(tmp_path / name, tmp_path / f"{name}_out", "--class_names", "x")
        crops.append(manifest[["crop_x0", "crop_y0", "crop_x1", "crop_y1", "mask_area"]].to_numpy().tolist())
    assert crops[0] == crops[1] == [[13, 13, 43, 32, 360]]
    assert "note: a row had more numbers than its outline, taken for " in capsys.readouterr().out


def test_a_million_points_in_one_row(tmp_path: Path):
    angle = np.linspace(0, 2 * np.pi, 10**6, endpoint=False)
    points = np.stack([0.5 + 0.4 * np.cos(angle), 0.5 + 0.3 * np.sin(angle)], axis=1)
    row = "0 " + " ".join(map("{:.7f}".format, points.ravel().tolist()))
    add_photo(tmp_path / "set", "images/a.jpg", "labels/a.txt", row)
    area = run_yolo(tmp_path / "set", tmp_path / "out", "--class_names", "x").mask_area[0]
    assert abs(area - np.pi * 0.4 * WIDTH * 0.3 * HEIGHT) < 25

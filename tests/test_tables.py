import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora import contracts
from sam_lora.errors import UserError
from sam_lora.tables import (
    box_from_json,
    point_labels_from_json,
    points_from_json,
    points_to_json,
    read_table,
    resolve_path,
    row_lines,
    table_writer,
    write_table,
    write_tables,
)

# ---- names ------------------------------------------------------------------------------------------------


def test_file_names():
    assert [contracts.split_table("val"), contracts.training_table("val")] == ["val.csv", "val_reformatted.csv"]
    assert contracts.epoch_checkpoint(3, 0.91234) == "sam-lora-epoch=03-val_iou=0.9123.ckpt"
    assert contracts.results_table(contracts.TUNED_RESULTS_PREFIX) == "finetuned_sam_results.csv"
    assert contracts.class_summary_table(contracts.BASE_RESULTS_PREFIX) == "base_sam_class_iou_summary.csv"
    assert contracts.SPLIT_COLUMNS == ("image_path", "mask_path", "class_id", "class_name", "point1_x", "point1_y",
                                       "point2_x", "point2_y", "point3_x", "point3_y")
    assert contracts.TRAINING_COLUMNS == ("image", "label", "points")


# ---- tables -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("content", "expected"), [
    pytest.param(b"a,b\n1,2\n", [["1", "2"]], id="plain"),
    pytest.param(b"\xef\xbb\xbfa,b\r\n1,2\r\n", [["1", "2"]], id="BOM and CRLF, as Excel saves"),
    pytest.param(b'a,b\n"1,5","x ""y"""\n', [["1,5", 'x "y"']], id="quotes"),
    pytest.param(b"a,b\nNA,nan\n,null\n", [["NA", "nan"], ["", "null"]], id="nothing is a missing value"),
    pytest.param(b"a,b\n007,1e5\n", [["007", "1e5"]], id="cells stay text"),
    pytest.param(b"a,b\n1\n2,3\n", [["1", ""], ["2", "3"]], id="a row that ends early"),
    pytest.param("a,b\nひび,é\n".encode(), [["ひび", "é"]], id="other scripts"),
])
def test_read_table(tmp_path, content, expected):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert read_table(path, ["a", "b"], "maker.py").values.tolist() == expected


@pytest.mark.parametrize(("content", "message"), [
    pytest.param(None, r"t.csv: no such file; make it with maker.py", id="missing"),
    pytest.param("folder", r"t.csv: is a folder, expected a CSV file; make it with maker.py", id="a folder"),
    pytest.param(b"", r"t.csv: cannot be read as CSV \(No columns to parse from file\); make it with", id="empty"),
    pytest.param(b"a,b,c\n", r"t.csv: has a header but no rows; make it with maker.py", id="header only"),
    pytest.param(b"b,x\n1,2\n", r"t.csv: missing column\(s\) a, c; found b, x; make it with maker.py", id="columns"),
    pytest.param(b"\x89PNG\r\n\x1a\n\xff\xfe", r"t.csv: cannot be read as CSV", id="not text"),
    pytest.param(b'a,b,c\n"1,2,3\n', r"t.csv: cannot be read as CSV", id="open quote"),
    pytest.param(b"a,b,c\n1,2,3\n1,2,3,4\n", r"t.csv: cannot be read as CSV", id="one row too long"),
    pytest.param(b"a,b,c\nx.png,[[1,2],[3,4]]\n", r"t.csv: cannot be read as CSV \(rows have more cells than",
                 id="points without quotes: every row too long"),
])
def test_read_table_refuses(tmp_path, content, message):
    path = tmp_path / "t.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_table(path, ["a", "b", "c"], "maker.py")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "lines"), [
    pytest.param(b"a,b\n1,2\n3,4\n", [2, 3], id="plain"),
    pytest.param(b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4", [2, 3], id="BOM, CRLF, no line end at the end"),
    pytest.param(b'a,b\n"1\n1\n1",2\n3,4\n5,"6\n"\n7,8\n', [2, 5, 6, 8], id="cells of several lines"),
    pytest.param(b"a,b\n\n1,2\n \n\n3,4\n\n", [3, 6], id="empty lines"),
    pytest.param(b'"a\na",b\n1,2\n', [3], id="a header of two lines"),
    pytest.param(b"a,b\r1,2\r3,4\r", [2, 3], id="CR alone"),
    pytest.param(b'a,b\n1,"2\n' + b"x" * 200_000 + b'"\n3,4\n', [2, 3], id="a huge cell: rows are counted"),
])
def test_row_lines(tmp_path, content, lines):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    rows = len(read_table(path, [], "maker.py"))
    assert list(row_lines(path, rows)) == lines


def test_write_table_bytes(tmp_path):
    write_table(pd.DataFrame({"a": [1, 2], "b": ["x,y", "é"]}), tmp_path / "new" / "t.csv")
    assert (tmp_path / "new" / "t.csv").read_bytes() == 'a,b\n1,"x,y"\n2,é\n'.encode()


text_cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=20)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(text_cells, text_cells), min_size=1, max_size=5))
def test_any_text_survives_writing_and_reading(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    rows = [("first", "row"), *rows]
    write_table(pd.DataFrame(rows, columns=["a", "b"]), path)
    back = read_table(path, ["a", "b"], "maker.py")
    assert [tuple(row) for row in back.values] == rows


def test_tables_that_belong_together_are_written_all_or_none(tmp_path):
    good = pd.DataFrame({"a": [1]})
    (tmp_path / "1.csv").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_tables({tmp_path / "1.csv": good, tmp_path / "2.csv": pd.DataFrame({"a": ["\ud800"]}, dtype=object)})
    assert [path.name for path in tmp_path.iterdir()] == ["1.csv"]
    assert (tmp_path / "1.csv").read_text() == "old"
    write_tables({tmp_path / "1.csv": good, tmp_path / "2.csv": good})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.csv", "2.csv"]


def test_resolve_path(tmp_path, monkeypatch):
    """From the current folder first; then from the table's; as written where neither has it."""
    (tmp_path / "tables" / "crops").mkdir(parents=True)
    (tmp_path / "tables" / "crops" / "a.png").write_text("")
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "tables" / "t.csv"
    assert resolve_path("crops/a.png", table) == tmp_path / "tables" / "crops" / "a.png"
    assert resolve_path("crops/b.png", table).as_posix() == "crops/b.png"
    assert resolve_path("tables/crops/a.png", table).as_posix() == "tables/crops/a.png"
    absolute = tmp_path / "nowhere.png"
    assert resolve_path(str(absolute), table) == absolute


# ---- cells ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("points", "expected"), [
    pytest.param([(1, 2), (3, 4), (5, 6)], "[[1,2],[3,4],[5,6]]", id="whole numbers"),
    pytest.param([(1.0, 2.5)], "[[1,2.5]]", id="one point, half a pixel"),
])
def test_points_to_json(points, expected):
    assert points_to_json(points) == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 2), min_size=1, max_size=5))
def test_points_survive(points):
    assert points_from_json(points_to_json(points), "cell") == [list(map(float, point)) for point in points]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3),
                                           lambda inner: st.lists(inner, max_size=4)).map(json.dumps))
def test_any_cell_is_points_or_a_user_error(text):
    try:
        points = points_from_json(text, "cell")
    except UserError as error:
        assert str(error).startswith("cell: found ") and "\n" not in str(error)
    else:
        assert points and all(len(point) == 2 and all(isinstance(value, float) for value in point) for point in points)


@pytest.mark.parametrize("text", [
    pytest.param("", id="empty"),
    pytest.param("[]", id="no point"),
    pytest.param("[[1,2],[3]]", id="half a point"),
    pytest.param("[[1,2,3]]", id="three numbers"),
    pytest.param("[1,2]", id="not nested"),
    pytest.param('[["1","2"]]', id="text"),
    pytest.param("[[1,NaN]]", id="NaN"),
    pytest.param("[[1,Infinity]]", id="infinite"),
    pytest.param("[[1,1e12]]", id="far away"),
    pytest.param("[[true,false]]", id="booleans"),
    pytest.param("((1,2),(3,4))", id="Python tuples"),
    pytest.param("__import__('os').system('true')", id="code"),
    pytest.param("[" * 100_000, id="very deep"),
    pytest.param('{"x": 1}', id="a dictionary"),
])
def test_points_from_json_refuses(text):
    with pytest.raises(UserError, match=r"^t.csv, row 3: found .*expected") as error:
        points_from_json(text, "t.csv, row 3")
    assert len(str(error.value)) < 160


@pytest.mark.parametrize(("text", "expected"), [
    pytest.param("[1,0,1]", [1, 0, 1], id="good"),
    pytest.param("[1.0,0,1]", [1, 0, 1], id="whole floats"),
    pytest.param("[1,0]", None, id="too few"),
    pytest.param("[1,0,2]", None, id="neither 0 nor 1"),
    pytest.param("[1,0,true]", None, id="boolean"),
    pytest.param("1", None, id="no list"),
])
def test_point_labels_from_json(text, expected):
    if expected is None:
        with pytest.raises(UserError, match="^cell: found"):
            point_labels_from_json(text, 3, "cell")
    else:
        assert point_labels_from_json(text, 3, "cell") == expected


@pytest.mark.parametrize(("text", "expected"), [
    pytest.param("[1,2,30.5,4]", [1, 2, 30.5, 4], id="good"),
    pytest.param("[1,2,1,4]", None, id="no width"),
    pytest.param("[1,5,3,4]", None, id="y0 below y1"),
    pytest.param("[1,2,3]", None, id="three numbers"),
    pytest.param("[1,2,3,null]", None, id="null"),
    pytest.param("[[1,2],[3,4]]", None, id="points"),
    pytest.param('["a","b","c","d"]', None, id="text"),
])
def test_box_from_json(text, expected):
    if expected is None:
        with pytest.raises(UserError, match="^cell: found"):
            box_from_json(text, "cell")
    else:
        assert box_from_json(text, "cell") == expected


def test_a_table_written_row_by_row_is_the_same(tmp_path):
    rows = [(1, "a, b", 'say "x"', ""), (2, "line\nbreak", "é 图", " blank "), (3, "tab\t", "#", "None")]
    columns = ("id", "name, long", "said", "rest")
    write_table(pd.DataFrame(rows, columns=columns), tmp_path / "at_once.csv")
    with table_writer(tmp_path / "by_row.csv", columns) as table:
        table.writerows(rows)
    assert (tmp_path / "by_row.csv").read_bytes() == (tmp_path / "at_once.csv").read_bytes()
    with pytest.raises(ZeroDivisionError), table_writer(tmp_path / "by_row.csv", columns) as table:
        table.writerow(rows[0])
        raise ZeroDivisionError
    assert (tmp_path / "by_row.csv").read_bytes() == (tmp_path / "at_once.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at_once.csv", "by_row.csv"]

import pandas as pd
import pytest

from sam_lora.data.conversion_report import REPORT_COLUMNS, ConversionReport
from sam_lora.errors import UserError


def report_of(takes: int, crops: list[int], skips: list[str]) -> ConversionReport:
    report = ConversionReport("label rows")
    for _ in range(takes):
        report.take()
    for pieces in crops:
        report.crop(pieces)
    for number, reason in enumerate(skips):
        report.skip("a.txt", f"a.txt:{number}", reason)
    return report


def test_the_summary():
    report = report_of(7, [1, 1, 3, 2], ["small", "empty", "empty"])
    report.photos = {"with objects": 2, "missing": 0}
    report.classes.update({"disc": 5, "bar": 2})
    report.notes.update(["a\nnote", "twice", "twice"])
    for example in ("a.txt\n:7", "a.txt:9"):
        report.doubt("masks look odd", example)
    report.close()
    assert list(report.lines()) == [
        "label rows: 7 = 4 crops + 3 skipped", "  skipped 2: empty", "  skipped 1: small",
        "  2 of these crops were too large for a tile and became 5 pieces: 7 pairs of image and mask",
        "photos: 2 with objects, 0 missing", "classes: disc 5, bar 2", "note: a_note", "note: twice (2 times)",
        "note: 2 masks look odd, e.g. a.txt_:7"]


@pytest.mark.parametrize("takes", [2, 4])
def test_a_lost_label_row_and_one_counted_twice_are_noticed(takes: int):
    with pytest.raises(AssertionError, match=f"{takes} label rows, but 2 crops . 1 skipped"):
        report_of(takes, [1, 1], ["small"]).close()


@pytest.mark.parametrize(("skips", "reason"), [(["small", "big", "small"], r"2 small; 1 big"),
                                               ([], "every photo is background")])
def test_no_crop_at_all_is_an_error(skips: list[str], reason: str):
    with pytest.raises(UserError, match=rf"nothing to convert: {len(skips)} label rows, no crop \({reason}\)"):
        report_of(len(skips), [], skips).close()


def test_strict_stops_at_the_first_skip():
    with pytest.raises(UserError, match=r"a\.txt: a\.txt:3: small \(9 x 9 px\); --strict is on"):
        ConversionReport("label rows", strict=True).skip("a.txt", "a.txt:3", "small", "9 x 9 px")


def test_the_table_of_skips(tmp_path):
    report = report_of(1, [], ["small"])
    report.skip("b\n.txt", "b\t:1", "odd", "\x1b[31m")
    report.write(tmp_path)
    table = pd.read_csv(tmp_path / "conversion_report.csv", keep_default_na=False)
    assert table.columns.tolist() == list(REPORT_COLUMNS)
    assert table.to_numpy().tolist() == [["a.txt", "a.txt:0", "small", ""], ["b_.txt", "b_:1", "odd", "_[31m"]]

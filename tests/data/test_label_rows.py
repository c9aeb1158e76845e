"""label_rows: numbers that tools add to a row are told from coordinates."""

import pytest

from sam_lora.data.label_rows import RowEnds, RowError, parse_label_row

OUTLINE = "0.2 0.3 0.5 0.3 0.5 0.6 0.2 0.6"
CRACK = "0.1 0.42 0.3 0.4 0.6 0.45 0.9 0.41 0.91 0.44 0.6 0.48 0.3 0.43"
CONFIDENCE, ID, BOTH = "a confidence", "an id", "a confidence and an id"
NUMBER, BOX = "a number before the outline", "a box before the outline"


@pytest.mark.parametrize("outline", [OUTLINE, CRACK])
@pytest.mark.parametrize(("before", "behind", "extra"), [
    pytest.param("", "", "", id="plain"),
    pytest.param("", "0.87", CONFIDENCE, id="confidence"),
    pytest.param("", "3", ID, id="track id"),
    pytest.param("", "-1", ID, id="track id of none"),
    pytest.param("", "0.87 1", BOTH, id="confidence and id 1"),
    pytest.param("", "0.87 3", BOTH, id="confidence and id 3"),
    pytest.param("", "1 17.0", BOTH, id="certain, and an id written as a fraction"),
    pytest.param("", "0.87 -1", BOTH, id="confidence and no id"),
    pytest.param("1952", "", NUMBER, id="instance id"),
    pytest.param("1", "", NUMBER, id="instance id 1"),
    pytest.param("0", "", NUMBER, id="flag"),
    pytest.param("7", "0.87", f"{NUMBER}, {CONFIDENCE} behind it", id="instance id and confidence"),
    pytest.param("7", "0.87 12", f"{NUMBER}, {BOTH} behind it", id="all three"),
    pytest.param("12 5", "", NUMBER, id="two ids first"),
    pytest.param("7", "12", f"{NUMBER}, {ID} behind it", id="an id on both sides"),
])
def test_extra_numbers_are_no_vertices(outline: str, before: str, behind: str, extra: str):
    row = parse_label_row(f"4 {before} {outline} {behind}")
    assert (row.class_id, row.is_box, row.extra) == (4, False, extra)
    assert tuple(row.polygon) == tuple(map(float, outline.split()))


@pytest.mark.parametrize(("before", "behind"), [
    pytest.param("0.35 0.45 0.3 0.3", "", id="centre and size"),
    pytest.param("0.351 0.449 0.302 0.298", "", id="rounded"),
    pytest.param("0.2 0.3 0.5 0.6", "", id="corners"),
    pytest.param("0.35 0.45 0.3 0.3", "0.9", id="and a confidence at the end"),
    pytest.param("0.35 0.45 0.3 0.3", "0.9 2", id="and confidence and id at the end"),
    pytest.param("0.35 0.45 0.3 0.3 0.9", "", id="box with its confidence"),
    pytest.param("0.9 0.35 0.45 0.3 0.3", "", id="confidence before the box"),
    pytest.param("12 0.35 0.45 0.3 0.3", "0.5", id="id before, confidence at the end"),
])
def test_a_box_before_its_outline(before: str, behind: str):
    row = parse_label_row(f"0 {before} {OUTLINE} {behind}")
    assert row.extra == BOX and tuple(row.polygon) == tuple(map(float, OUTLINE.split()))


@pytest.mark.parametrize(("numbers", "extra"), [
    pytest.param("0.35 0.45 0.3 0.3 0.87", CONFIDENCE, id="confidence"),
    pytest.param("0.35 0.45 0.3 0.3 5", ID, id="id"),
    pytest.param("0.35 0.45 0.3 0.3 0.87 5", BOTH, id="confidence and id"),
    pytest.param("0.35 0.45 0.3 0.3 0.87 1", BOTH, id="confidence and id 1"),
    pytest.param("1 0.35 0.45 0.3 0.3", NUMBER, id="id first"),
    pytest.param("9 0.35 0.45 0.3 0.3 0.87", NUMBER, id="id first, confidence last"),
])
def test_extra_numbers_of_boxes(numbers: str, extra: str):
    row = parse_label_row(f"0 {numbers}")
    assert row.is_box and row.extra == extra
    assert tuple(row.polygon) == pytest.approx(tuple(map(float, OUTLINE.split())))


@pytest.mark.parametrize("numbers", [
    pytest.param("0 0 1 0 1 1 0 1", id="the whole photo"),
    pytest.param("0.2 0.5 0.8 0.5 0.8 1 0.2 1", id="cut off by the lower edge"),
    pytest.param("0.2 0.5 0.8 0.5 0.500000 1.000000", id="a tip at the lower edge"),
    pytest.param("0 0.4 0.3 0.3 0.5 0.45 0.2 0.6 0 0.5", id="cut off by the left edge"),
    pytest.param("0.7 0.2 1 0.2 1 0.6 0.75 0.6", id="cut off by the right edge"),
    pytest.param("-0.4 0.2 1.4 0.2 1.4 0.6 -0.4 0.6", id="far out of the photo"),
])
def test_outlines_that_reach_the_edge_stay_whole(numbers: str):
    row = parse_label_row(f"0 {numbers}")
    assert not row.extra and tuple(row.polygon) == tuple(map(float, numbers.split()))


@pytest.mark.parametrize(("line", "reason"), [
    pytest.param(f"0 {OUTLINE} 0.5 1.6", "beyond", id="above 1.5"),
    pytest.param("0 0.2 0.3 -0.7 0.3 0.5 0.6 0.2 0.6", "beyond", id="below -0.5"),
    pytest.param(f"0 {OUTLINE} 3 0.87", "beyond", id="id, then confidence"),
    pytest.param(f"0 {OUTLINE} 1.7", "beyond", id="an odd one that is neither"),
    pytest.param("0 0.35 0.45 0.3 0.3 1.7", "beyond", id="a box and something"),
    pytest.param("0 0.5 0.5 40 0.3", "beyond", id="a box of 40 photos"),
    pytest.param(f"0 0.87 {OUTLINE}", "unclear", id="a confidence first"),
    pytest.param(f"0 7 0.87 {OUTLINE}", "unclear", id="an id and a confidence first"),
    pytest.param(f"0 {OUTLINE} 0 0", "look like no coord", id="two flags behind it"),
    pytest.param(f"0 {OUTLINE} 0.87 0", "look like no coord", id="confidence and id 0"),
    pytest.param("0 0 0.2 0.5 0.6 0.5 0.9 1", "unclear", id="first or last"),
    pytest.param(f"0 1 {OUTLINE} 0.87", "look like no coord", id="flag 1 and a confidence"),
])
def test_rows_in_doubt_are_refused(line: str, reason: str):
    with pytest.raises(RowError, match=reason):
        parse_label_row(line)


TIP = "0 0.1 0.1 0.2 0.1 0.2 0.8 0.3 0.9 0.2 1"


@pytest.mark.parametrize(("others", "extra"), [
    pytest.param([f"0 {OUTLINE} 0.87 2", f"1 {OUTLINE} 0.3 15"], BOTH, id="that end in confidence and id"),
    pytest.param([f"0 {OUTLINE}", f"1 {CRACK}"], "", id="plain ones"),
])
def test_other_rows_of_the_set_decide(others: list[str], extra: str):
    assert parse_label_row(TIP, RowEnds(lambda: others)).extra == extra


def test_alone_it_is_refused():
    with pytest.raises(RowError, match="look like no coordinates"):
        parse_label_row(TIP, RowEnds(lambda: [TIP]))


MORE = "0.2 0.3 0.5 0.3 0.5 0.6 0.2 0.65", "0.2 0.3 0.5 0.3 0.55 0.6 0.2 0.6", "0.22 0.3 0.5 0.3 0.5 0.6 0.2 0.6"


def test_confidences_first_are_refused():
    rows = [f"0 0.87 {outline}" for outline in (OUTLINE, CRACK, *MORE)]
    for row in rows:
        with pytest.raises(RowError, match="unclear whether the first or the last"):
            parse_label_row(row, RowEnds(lambda: rows))


def test_other_rows_tell_confidence_last():
    row = "0 0.1 0.1 0.9 0.2 0.5 0.4 0.5 0.5 0.7"      # by itself it looks as if the first were too many
    with pytest.raises(RowError, match="unclear"):
        parse_label_row(row)
    rows = [row, *(f"0 {outline} 0.91" for outline in (OUTLINE, CRACK, *MORE))]
    assert parse_label_row(row, RowEnds(lambda: rows)).extra == CONFIDENCE


def test_other_rows_tell_id_0():
    tracked = [f"0 {OUTLINE} 0.87 0", f"0 {CRACK} 0.3 5"]
    assert parse_label_row(tracked[0], RowEnds(lambda: tracked)).extra == BOTH


def test_other_rows_tell_a_flag_first():
    unclear = "0 0 0.2 0.5 0.6 0.5 0.9 1"
    flagged = [f"0 1 {OUTLINE}", unclear]
    assert tuple(parse_label_row(unclear, RowEnds(lambda: flagged)).polygon)[:2] == (0.2, 0.5)
    scored = [f"0 {OUTLINE} 0.9", f"0 {CRACK} 0.8", unclear]
    assert tuple(parse_label_row(unclear, RowEnds(lambda: scored)).polygon)[:2] == (0.0, 0.2)

"""report.html: one valid page that needs nothing else, whatever the names in it."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.results import comparison, report
from sam_lora.results.summaries import summarise, summarise_sizes

PREFIX = "finetuned_sam"
VOID = {"meta", "img", "br", "link", "hr", "input"}
PHRASING = {"p": {"p", "div", "table", "figure", "section", "ul", "dl", "h2", "h3"}}  # what a p may not hold


class Page(HTMLParser):
    """A strict reader: every element closed in order, no id twice, all attributes quoted."""

    def __init__(self, markup: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        for outer in self.open:
            assert tag not in PHRASING.get(outer, ()), f"<{tag}> inside <{outer}>"
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def results_of(folder: Path, names=("a", "b", "a", "a"), drawn=(0, 1, 2), image="images/{}.png") -> dict:
    """A results folder's tables and pictures, small."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    iou = np.linspace(0.9, 0.2, len(names))
    results = pd.DataFrame({
        "class_name": names, "image": [image.format(i) for i in range(len(names))],
        "label": [f"masks/{i}.png" for i in range(len(names))], "iou": iou, "dice": iou, "boundary_iou": iou,
        "predicted_iou": 0.5, "mask_area": 20, "truth_area": 2000, "size": "medium", "mask": "m", "picture": ""})
    for row in drawn:
        results.loc[row, "picture"] = f"samples/{row}.jpg"
        assert cv2.imwrite(str(folder / "samples" / f"{row}.jpg"), np.full((30, 44, 3), 40 * row % 256, np.uint8))
    return {contracts.results_table(PREFIX): results,
            contracts.class_summary_table(PREFIX): summarise(results),
            contracts.size_summary_table(PREFIX): summarise_sizes(results)}


def page_of(folder: Path, tables: dict, training_folder=None, sentences=("A verdict.",), notes=(), **facts) -> Page:
    findings = report.Findings(tables, list(sentences), list(notes))
    found = report.write_report(folder, PREFIX, {"model": "x.ckpt", "test table": "t.csv", **facts}, findings,
                                training_folder)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    page.left_out = found
    return page


def pictures_of(page: Page) -> list[np.ndarray]:
    """Every picture of the page, decoded; each is what its address says, and says what it shows."""
    found = []
    for attributes in page.all("img"):
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(\S+)", attributes["src"]).groups()
        content = base64.b64decode(data, validate=True)
        assert content.startswith(b"\x89PNG" if kind == "png" else b"\xff\xd8")
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert (attributes["width"], attributes["height"]) == (str(pixels.shape[1]), str(pixels.shape[0]))
        assert attributes["alt"].strip()
        found.append(pixels)
    return found


def test_the_page_needs_nothing_and_runs_nothing(tmp_path):
    page = page_of(tmp_path, results_of(tmp_path))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    around_pictures = re.sub(r'src="data:[^"]*"', "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=|\son\w+=", around_pictures, re.IGNORECASE)
    policy, = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids) and {f"#{name}" for name in ids} == {a["href"] for a in page.all("a")}
    assert len(page.all("h1")) == 1 and len(page.all("main")) == 1
    assert len(pictures_of(page)) == 3 and page.left_out == []


def test_scores_and_facts_stand_on_the_page(tmp_path):
    tables = results_of(tmp_path)
    page = page_of(tmp_path, tables, sentences=["Better & better."], notes=["2 rows have no label"], photos=7)
    for words in ("Better & better.", "2 rows have no label", "photos: 7", "x.ckpt", "finetuned_sam: t.csv",
                  contracts.BY_OBJECT, contracts.BY_CLASS, "1024 to 9215", "0.550", "50%",
                  "a 2 of 3 objects, mean IoU 0.511, lowest IoU first", "b 1 of 1 objects, mean IoU 0.667"):
        assert words in page.words, words
    cells = [attributes for tag, attributes in page.tags if tag == "th"]
    assert {cell["scope"] for cell in cells} == {"row", "col"}
    assert [a["alt"][:16] for a in page.all("img")] == ["a, IoU 0.43, no.", "a, IoU 0.90, no.", "b, IoU 0.67, no."]


def test_comparison_with_its_pictures(tmp_path):
    tables = results_of(tmp_path)
    compared = comparison.compare(["a", "b", "a"], ["p", "q", "r"], np.array([0.1, 0.2, 0.3]), np.array([0.2] * 3), 0)
    tables[contracts.COMPARISON_TABLE] = compared
    for name in ("comparison.png", "improved.jpg"):
        assert cv2.imwrite(str(tmp_path / name), np.zeros((40, 60, 3), np.uint8))
    page = page_of(tmp_path, tables)
    assert "Base against tuned" in page.words and "+0.000" in page.words and "-0.100 to +0.100" in page.words
    assert [a["src"][:15] for a in page.all("img")[:2]] == ["data:image/png;", "data:image/jpeg"]
    assert len(pictures_of(page)) == 5


def test_results_without_labels_have_pictures_only(tmp_path):
    tables = results_of(tmp_path)
    results = tables[contracts.results_table(PREFIX)]
    results = results.assign(**dict.fromkeys(("label", "iou", "dice", "boundary_iou", "truth_area", "size"), ""))
    page = page_of(tmp_path, {contracts.results_table(PREFIX): results}, sentences=[])
    assert len(pictures_of(page)) == 3 and "mean IoU" not in page.words and "Scores" not in page.words
    assert "a 2 of 3 objects" in page.words


def test_no_pictures_and_no_training_leave_the_scores(tmp_path):
    page = page_of(tmp_path, results_of(tmp_path, drawn=()), tmp_path / "gone")
    assert page.all("img") == [] and [a["href"] for a in page.all("a")] == ["#scores"]


# ---- training ---------------------------------------------------------------------------------------------------

def test_curves_and_log_of_the_training(tmp_path):
    assert cv2.imwrite(str(tmp_path / "training_curves.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "training_log.csv").write_text("epoch,val_iou,other,train_loss\n0,0.26923,7,\n1,0.4,7,<b>\n")
    page = page_of(tmp_path / "out", results_of(tmp_path / "out", drawn=()), tmp_path)
    assert len(pictures_of(page)) == 1 and "Training log, 2 rows" in page.words and "0.2692" in page.words
    assert "<b>" in page.words and "7" not in page.words.split("Training log")[1]


def test_a_long_log_is_cut(tmp_path):
    rows = "".join(f"{i},0.5\n" for i in range(5000))
    (tmp_path / "training_log.csv").write_text(f"epoch,val_iou\n{rows}")
    page = page_of(tmp_path / "out", results_of(tmp_path / "out", drawn=()), tmp_path)
    assert "5000 rows, the last 300" in page.words and len(page.all("tr")) < 320 and "4999" in page.words


@pytest.mark.parametrize(("name", "content"), [
    pytest.param("training_curves.png", b"<script>alert(1)</script>", id="curves that are no picture"),
    pytest.param("training_curves.png", b"", id="empty curves"),
    pytest.param("training_log.csv", b"a,b\n1,2\n", id="another table"),
    pytest.param("training_log.csv", b"\x00\xff\xfe" * 20, id="a log that is no table"),
])
def test_broken_training_files_are_left_out_and_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    page = page_of(tmp_path / "out", results_of(tmp_path / "out", drawn=()), tmp_path)
    assert len(page.left_out) == 1 and page.left_out[0].startswith(f"not in report.html: {tmp_path / name}: ")
    assert page.all("img") == [] and "not in report.html" in page.words


# ---- names from anywhere ----------------------------------------------------------------------------------------

NASTY = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("<>&\"'`=/\x00\x0b\x85\ufffe\u202e"),
                min_size=1, max_size=30)


@given(NASTY)
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_as_it_was(value):
    def rendered(text: str) -> Page:
        """The text as heading, sentence, note, caption, cells and an attribute."""
        table = report.Table(text, [text], [report.Row(text, [report.Cell(text, number=False)], total=False)])
        picture = report.Picture("data:,", text, 3, 2)
        return Page(report.render(report.Page(text, [(text, text)], [text], [(text, text)], [text], [table], None, None,
                                              None, report.Training(picture, text, table), None)))

    page, reference = rendered(value), rendered("x")
    shown = report.FORBIDDEN.sub("\ufffd", value)
    assert page.all("img")[0]["alt"] == shown and page.words.count(shown) >= 10
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in reference.tags]   # it adds no element


@pytest.mark.parametrize("name", [
    pytest.param("<script>alert(1)</script>", id="a script"), pytest.param('" onerror="alert(1)', id="an attribute"),
    pytest.param("</title></style></bdi>", id="closing tags"), pytest.param("&lt;&#60;", id="character references"),
    pytest.param("a\x00b\x1b[31m\ud800", id="control characters"), pytest.param("\u202eevil", id="right to left"),
])
def test_names_that_are_markup_stay_text(tmp_path, name):
    tables = results_of(tmp_path, names=(name, "b", name, "b"), image=name + "{}")
    page = page_of(tmp_path, tables, sentences=[name], notes=[name], **{"test table": name, "model": name})
    reference = page_of(tmp_path / "plain", results_of(tmp_path / "plain", names=("0", "b", "0", "b")),
                        sentences=["x"], notes=["x"])
    found, expected = (sorted((tag, *attributes) for tag, attributes in read.tags) for read in (page, reference))
    assert found == expected   # the name adds no element and no attribute
    assert report.FORBIDDEN.sub("\ufffd", name) in page.words
    assert not report.FORBIDDEN.search((tmp_path / "report.html").read_text(encoding="utf-8"))


# ---- size -------------------------------------------------------------------------------------------------------

def test_the_gallery_is_bounded_and_shows_every_class(tmp_path):
    names = [*"a" * 70, *"b" * 2, "c"]
    page = page_of(tmp_path, results_of(tmp_path, names, range(len(names))))
    assert len(page.all("img")) == report.GALLERY_PICTURES
    assert "13 more are in samples/." in page.words
    for words in ("a 57 of 70 objects", "b 2 of 2 objects", "c 1 of 1 objects"):
        assert words in page.words


def page_with(picture: report.Picture) -> Page:
    training = report.Training(picture, "", None)
    return Page(report.render(report.Page("t", [], [], [], [], [], None, None, None, training, None)))


def test_pictures_are_made_smaller_where_they_are_large(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((300, 4400, 3), np.uint8))
    page = page_with(report.picture_of(tmp_path / "a.png", "a", 1100))
    assert pictures_of(page)[0].shape == (75, 1100, 3)


def test_a_jpeg_that_fits_goes_in_as_it_is_and_a_larger_one_smaller(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 110, 3), dtype=np.uint8)
    imaging.write_jpeg(tmp_path / "a.jpg", pixels)
    stored = base64.b64encode((tmp_path / "a.jpg").read_bytes()).decode()
    picture = report.picture_of(tmp_path / "a.jpg", "a", 110)
    assert picture == report.Picture(f"data:image/jpeg;base64,{stored}", "a", 110, 60)
    page = page_with(report.picture_of(tmp_path / "a.jpg", "a", 55))
    assert pictures_of(page)[0].shape == (30, 55, 3)

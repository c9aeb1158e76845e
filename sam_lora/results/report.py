"""report.html: one page that holds a whole results folder, pictures included. No network, no script.

The page itself is `report.html.j2`; here its values are prepared. Class and file names come from anywhere: the
template escapes all text, and pictures are decoded and re-encoded, so that the page holds nothing but pictures of
bounded size.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.errors import UserError
from sam_lora.tables import read_table

if TYPE_CHECKING:
    import jinja2

TEMPLATE = "report.html.j2"
FOUND_PICTURES = 12
GALLERY_PICTURES = 60                     # on the whole page; samples/ has all
LONGEST_PANEL, LONGEST_CURVES, LONGEST_SHEET = 1100, 2000, 6000  # pixels; a sheet is as long as it has rows
QUALITY = 82
LOG_ROWS = 300
# in a name: not allowed in HTML, or not encodable
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
HEADINGS = {
    "class_name": "class", "mean_iou": "mean IoU", "median_iou": "median IoU", "p5_iou": "5th percentile",
    "mean_dice": "mean Dice", "mean_boundary_iou": "mean boundary IoU", "share_below_0.5": "IoU under 0.5",
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar100": "AR100", "f1": "F1", "count_error": "count error a photo",
    "false_on_background": "false on a background photo", "seconds_a_photo": "seconds a photo",
    "base_iou": "base IoU", "tuned_iou": "tuned IoU", "mean_difference": "difference", "ci95": "95 % interval",
    "wins": "better on", "losses": "worse on", "train_loss": "training loss", "val_loss": "validation loss",
    "train_iou": "training IoU", "val_iou": "validation IoU", "learning_rate": "learning rate",
}
LOG_COLUMNS = ("epoch", "train_loss", "val_loss", "train_iou", "val_iou", "learning_rate", "seconds")


@dataclass
class Findings:
    """The findings of a run: `tables` by file name, `sentences` (such as the verdict), `notes` (small print)."""

    tables: dict[str, pd.DataFrame]
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ---- what the template fills in -----------------------------------------------------------------------------

@dataclass(frozen=True)
class Picture:
    """An image that carries its own bytes: `data` is a data URL."""

    data: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Cell:
    text: str
    number: bool     # a number needs no <bdi> around it, unlike a name, which may run from right to left


@dataclass(frozen=True)
class Row:
    name: str
    cells: Sequence[Cell]
    total: bool      # of all classes


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of each row is its name."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Comparison:
    table: Table
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class PromptKinds:
    table: Table
    curve: Picture | None


@dataclass(frozen=True)
class FoundObjects:
    table: Table
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Training:
    curves: Picture | None
    summary: str
    log: Table | None


@dataclass(frozen=True)
class Gallery:
    """Samples of one class."""

    name: str
    count: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Samples:
    more: str
    galleries: Sequence[Gallery]
    sheet: Picture | None


@dataclass(frozen=True)
class Page:
    """The whole page; a section that is empty or None is left out."""

    title: str
    facts: Sequence[tuple[str, object]]
    sentences: Sequence[str]
    numbers: Sequence[tuple[str, str]]
    notes: Sequence[str]
    scores: Sequence[Table]
    comparison: Comparison | None
    prompts: PromptKinds | None
    found: FoundObjects | None
    training: Training | None
    samples: Samples | None

    @property
    def sections(self) -> list[tuple[str, str]]:
        titles = {"scores": "Scores", "comparison": "Base against tuned", "prompts": "Kinds of prompts",
                  "found": "Found without a prompt", "training": "Training", "samples": "Samples"}
        return [(name, title) for name, title in titles.items() if getattr(self, name)]


# ---- the page -----------------------------------------------------------------------------------------------

def write_report(folder: Path, prefix: str, facts: Mapping[str, object], findings: Findings,
                 training_folder: str | Path | None = None) -> list[str]:
    """Write report.html into a results folder that is otherwise complete; returns a note on each part left out.

    `facts`: what was scored, for the head of the page. `training_folder`: where training_log.csv and
    training_curves.png are.
    """
    left_out: list[str] = []
    summary = findings.tables.get(contracts.class_summary_table(prefix))
    training = training_section(training_folder, left_out)
    page = Page(
        title=f"{prefix}: {Path(str(facts.get('test table', ''))).name}",
        facts=[(key, value) for key, value in facts.items() if value != ""],
        sentences=findings.sentences, numbers=[] if summary is None else headline(summary),
        notes=[*findings.notes, *left_out], scores=score_tables(prefix, findings.tables),
        comparison=comparison_section(folder, findings.tables.get(contracts.COMPARISON_TABLE)),
        prompts=prompts_section(folder, findings.tables.get(contracts.prompt_summary_table(prefix))),
        found=found_section(folder, findings.tables.get(contracts.find_summary_table(prefix))), training=training,
        samples=samples_section(folder, findings.tables.get(contracts.results_table(prefix))))
    (folder / contracts.REPORT_PAGE).write_text(render(page), encoding="utf-8", newline="\n")
    return left_out


def render(page: Page) -> str:
    """The page as HTML; whatever it holds is escaped, and characters that HTML forbids are replaced."""
    return _template().render(page=page)


@cache
def _template() -> "jinja2.Template":
    import jinja2
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, finalize=_allowed)
    return environment.get_template(TEMPLATE)


def _allowed(value: object) -> object:
    """Text without characters that HTML forbids; the template's own markup passes unchanged."""
    return FORBIDDEN.sub("\ufffd", value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def headline(summary: pd.DataFrame) -> list[tuple[str, str]]:
    """The numbers at the top: all objects."""
    row = summary[summary["class_name"] == contracts.BY_OBJECT].iloc[0]
    return [("mean IoU", f"{row['mean_iou']:.3f}"), ("median IoU", f"{row['median_iou']:.3f}"),
            ("5th percentile", f"{row['p5_iou']:.3f}"), ("mean boundary IoU", f"{row['mean_boundary_iou']:.3f}"),
            ("IoU under 0.5", f"{row['share_below_0.5']:.0%}"), ("objects scored", f"{row['n']:.0f}")]


def score_tables(prefix: str, tables: Mapping[str, pd.DataFrame]) -> list[Table]:
    """The summaries by class and by size, if there are any."""
    captions = {contracts.class_summary_table(prefix): "By class. n counts objects; in the last row, classes.",
                contracts.size_summary_table(prefix):
                    "By size of the object: pixels of its true mask, COCO's bounds."}
    return [table_of(_with_percent(tables[name]), caption) for name, caption in captions.items() if name in tables]


def comparison_section(folder: Path, comparison: pd.DataFrame | None) -> Comparison | None:
    if comparison is None:
        return None
    interval = [f"{low:+.3f} to {high:+.3f}" if np.isfinite(low) else "-" for low, high in
                zip(comparison["ci95_low"], comparison["ci95_high"])]
    shown = comparison.drop(columns=["ci95_low", "ci95_high"])
    shown["mean_difference"] = [f"{value:+.3f}" for value in comparison["mean_difference"]]
    shown.insert(shown.columns.get_loc("mean_difference") + 1, "ci95", interval)
    pictures = [
        (contracts.COMPARISON_PICTURE, "Left: IoU of the base model against IoU of the tuned model, a mark for each "
         "object. Right: histogram of the differences with their mean and its 95 % interval."),
        (contracts.IMPROVED_PICTURE, "The objects that improved most: image and prompt, base, tuned, ground truth."),
        (contracts.REGRESSED_PICTURE, "The objects that regressed most: image and prompt, base, tuned, ground truth."),
    ]
    caption = ("The same objects with the same clicks. The interval of the mean difference resamples whole photos: "
               "where it includes 0, nothing has been shown yet.")
    return Comparison(table_of(shown, caption), [picture_of(folder / name, alt, LONGEST_SHEET)
                                                 for name, alt in pictures if (folder / name).is_file()])


def prompts_section(folder: Path, summary: pd.DataFrame | None) -> PromptKinds | None:
    if summary is None:
        return None
    caption = ("Mean IoU by kind of prompt, the same prompts for both models; below it how many clicks reach an IoU. "
               "The first click is the pixel of the object farthest from its border, each further one the pixel "
               "farthest from the border of the thickest error.")
    path = folder / contracts.CLICK_CURVE
    alt = "Mean IoU after 1 to 10 clicks."
    return PromptKinds(table_of(summary, caption), picture_of(path, alt, LONGEST_CURVES) if path.is_file() else None)


def found_section(folder: Path, summary: pd.DataFrame | None) -> FoundObjects | None:
    if summary is None:
        return None
    caption = ("Average precision and recall as COCO has them, of masks; precision, recall and F1 of the objects whose "
               "score is the threshold or more, with a mask IoU of 0.5 or more.")
    curve = folder / contracts.FIND_CURVE
    paths = [curve] * curve.is_file() + sorted((folder / contracts.FOUND_FOLDER).glob("*.jpg"))[:FOUND_PICTURES]
    pictures = [picture_of(path, "Precision over recall." if path == curve else f"{path.stem}: what was found",
                           LONGEST_CURVES if path == curve else LONGEST_PANEL) for path in paths]
    return FoundObjects(table_of(summary, caption), pictures)


def training_section(folder: str | Path | None, left_out: list[str]) -> Training | None:
    """Curves and log of the training if they can be read; a note on each that cannot is appended to `left_out`."""
    if folder is None:
        return None
    curves, log, summary = None, None, ""
    try:
        if (path := Path(folder) / contracts.TRAINING_CURVES).is_file():
            curves = picture_of(path, "Loss, IoU and learning rate by epoch; epoch 0 is the untuned model.",
                                LONGEST_CURVES)
    except UserError as error:
        left_out.append(f"not in {contracts.REPORT_PAGE}: {error}")
    try:
        if (path := Path(folder) / contracts.TRAINING_LOG).is_file():
            summary, log = log_table(path)
    except UserError as error:
        left_out.append(f"not in {contracts.REPORT_PAGE}: {error}")
    return Training(curves, summary, log) if curves or log else None


def log_table(path: Path) -> tuple[str, Table]:
    """A line about the log, and its last rows. Raises UserError."""
    log = read_table(path, ("epoch",), "train.py")
    shown = log[[column for column in LOG_COLUMNS if column in log]].tail(LOG_ROWS)
    shown = shown.apply(lambda column: [_short(cell) for cell in column])
    last = f", the last {LOG_ROWS}" if len(log) > LOG_ROWS else ""
    return (f"Training log, {len(log)} rows{last}",
            table_of(shown, "A row for each epoch; epoch 0 is the untuned model."))


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}" if cell else "-"
    except ValueError:
        return cell


def samples_section(folder: Path, results: pd.DataFrame | None) -> Samples | None:
    """Drawn samples by class, lowest IoU first, and the contact sheet."""
    if results is None:
        return None
    drawn = results[results["picture"] != ""]
    if drawn.empty:
        return None
    turn = drawn.groupby("class_name").cumcount()   # classes take turns, so that each is seen
    kept = drawn.loc[turn.sort_values(kind="stable").index[:GALLERY_PICTURES]]
    more = f" {len(drawn) - len(kept)} more are in {contracts.SAMPLES_FOLDER}/." if len(kept) < len(drawn) else ""
    galleries = [gallery(folder, name, part, results) for name, part in kept.groupby("class_name", sort=True)]
    sheet = folder / contracts.PREDICTIONS_PICTURE
    alt = "Contact sheet: the lowest, middle and highest IoU, then the samples drawn by lot"
    return Samples(more, galleries, picture_of(sheet, alt, LONGEST_SHEET) if sheet.is_file() else None)


def gallery(folder: Path, name: str, drawn: pd.DataFrame, results: pd.DataFrame) -> Gallery:
    """The `drawn` samples of one class."""
    iou = pd.to_numeric(results.loc[results["class_name"] == name, "iou"], errors="coerce")
    mean = f", mean IoU {iou.mean():.3f}" if iou.notna().any() else ""
    count = f"{len(drawn)} of {len(iou)} objects{mean}" + (", lowest IoU first" if len(drawn) > 1 and mean else "")
    drawn = drawn.loc[pd.to_numeric(drawn["iou"], errors="coerce").sort_values(kind="stable").index]
    pictures = []
    for row, sample in zip(drawn.index, drawn.to_dict("records")):
        score, truth = (f"IoU {float(sample['iou']):.2f}, ", ", ground truth") if sample["iou"] != "" else ("", "")
        alt = f"{name}, {score}no. {row + 1}: image with its prompt, prediction{truth}"
        pictures.append(picture_of(folder / sample["picture"], alt, LONGEST_PANEL))
    return Gallery(name, count, pictures)


# ---- parts --------------------------------------------------------------------------------------------------

def table_of(table: pd.DataFrame, caption: str) -> Table:
    """Any table; floats with three decimals, NaN as a dash."""
    def cell(value: object) -> Cell:
        if isinstance(value, float):
            return Cell(f"{value:.3f}" if np.isfinite(value) else "-", number=True)
        return Cell(str(value), number=False)

    rows = [Row(str(name), [cell(value) for value in values], name in (contracts.BY_OBJECT, contracts.BY_CLASS))
            for name, *values in table.itertuples(index=False, name=None)]
    return Table(caption, [HEADINGS.get(column, column) for column in table.columns], rows)


def picture_of(path: Path, alt: str, longest: int) -> Picture:
    """The picture in a file, no side above `longest` pixels. Raises ImageError.

    A JPEG that is small enough goes in unchanged: this run has written it.
    """
    kind, size = "jpeg", imaging.image_size(path)
    if path.suffix == ".jpg" and max(size) <= longest:
        data = path.read_bytes()
    else:
        pixels = imaging.load_image(path)
        scale = longest / max(size)
        if scale < 1:
            size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        if path.suffix == ".png":   # plots: sharp lines
            kind, data = "png", imaging.encode_png(pixels)
        else:
            data = imaging.encode_jpeg(pixels, QUALITY)
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", alt, *size)


def _with_percent(summary: pd.DataFrame) -> pd.DataFrame:
    column = "share_below_0.5"
    return summary.assign(**{column: [f"{value:.0%}" if np.isfinite(value) else "-" for value in summary[column]]})

"""report.html: one page that holds a whole results folder, pictures included. No network, no script.

Class and file names come from anywhere, so all text is escaped; pictures are decoded and coded anew, so that what the
page carries is a picture, of bounded size.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.errors import UserError
from sam_lora.tables import read_table

GALLERY_PICTURES = 60                     # on the whole page; samples/ has all
LONGEST_PANEL, LONGEST_CURVES, LONGEST_SHEET = 1100, 2000, 6000  # pixels; a sheet is as long as it has rows
QUALITY = 82
LOG_ROWS = 300
# of a name: not allowed in HTML, or not encodable
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
HEADINGS = {
    "class_name": "class", "mean_iou": "mean IoU", "median_iou": "median IoU", "p5_iou": "5th percentile",
    "mean_dice": "mean Dice", "mean_boundary_iou": "mean boundary IoU", "share_below_0.5": "IoU under 0.5",
    "base_iou": "base IoU", "tuned_iou": "tuned IoU", "mean_difference": "difference", "ci95": "95 % interval",
    "wins": "better on", "losses": "worse on", "train_loss": "training loss", "val_loss": "validation loss",
    "train_iou": "training IoU", "val_iou": "validation IoU", "learning_rate": "learning rate",
}
LOG_COLUMNS = ("epoch", "train_loss", "val_loss", "train_iou", "val_iou", "learning_rate", "seconds")

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 22%, Canvas);
  --soft: color-mix(in srgb, CanvasText 6%, Canvas); --quiet: color-mix(in srgb, CanvasText 68%, Canvas); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem) 4rem; max-width: 76rem; background: Canvas;
  color: CanvasText; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; margin: .75rem 0; padding: 0; }
a { color: LinkText; }
.verdict { font-size: 1.1rem; background: var(--soft); border-left: .3rem solid #0072b2; padding: .6rem .9rem; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.numbers div { background: var(--soft); border-radius: .4rem; padding: .5rem .75rem; display: flex;
  flex-direction: column-reverse; justify-content: flex-end; }
.numbers dt { color: var(--quiet); font-size: .85rem; }
.numbers dd { margin: 0; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: .25rem 0 1.25rem; }
.wide img { min-width: 40rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; font-size: .85rem; background: var(--soft); }
tbody th, thead th:first-child { text-align: left; }
tbody th { font-weight: inherit; }
tr.all > * { font-weight: 600; }
figure { margin: .75rem 0; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: .3rem; }
figure .wide { margin: 0 0 .25rem; }
.gallery { columns: 30rem; column-gap: .75rem; }
.gallery figure { margin: 0 0 .75rem; break-inside: avoid; }
h3 .quiet { font-weight: normal; }
summary { cursor: pointer; padding: .3rem 0; }
.key { display: inline-block; width: .9em; height: .9em; border: 1px solid #141414; vertical-align: -.1em; }
"""


# ---- the page -----------------------------------------------------------------------------------------------

def write_report(folder: Path, prefix: str, facts: Mapping[str, object], tables: Mapping[str, pd.DataFrame],
                 sentences: Sequence[str], notes: Sequence[str], training_folder: str | Path | None = None
                 ) -> list[str]:
    """Write report.html into a results folder that is otherwise complete; returns what it had to leave out, in words.

    `facts`: what was scored, for the head of the page. `tables`: by file name, as the folder has them. `sentences`: the
    verdict and the like; `notes`: small print. `training_folder`: where training_log.csv and training_curves.png are.
    """
    results = tables[contracts.results_table(prefix)]
    summary = tables.get(contracts.class_summary_table(prefix))
    left_out: list[str] = []
    sections = [
        ("scores", "Scores", _scores(prefix, tables)),
        ("comparison", "Base against tuned", _comparison(folder, tables.get(contracts.COMPARISON_TABLE))),
        ("training", "Training", _training(training_folder, left_out)),
        ("samples", "Samples", _samples(folder, results)),
    ]
    sections = [(name, title, content) for name, title, content in sections if content]
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    title = f"{prefix}: {Path(str(facts.get('test table', ''))).name}"
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{name_text(title)}</h1>
<p class="quiet">{' · '.join(f'{text(key)}: {name_text(value)}' for key, value in facts.items() if value != '')}</p>
{''.join(f'<p class="verdict">{text(sentence)}</p>' for sentence in sentences)}
{_numbers(summary)}
{''.join(f'<p class="quiet">{name_text(note)}</p>' for note in [*notes, *left_out])}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{''.join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)}
</main>
</body>
</html>
"""
    (folder / contracts.REPORT_PAGE).write_text(page, encoding="utf-8", newline="\n")
    return left_out


def _numbers(summary: pd.DataFrame | None) -> str:
    if summary is None:
        return ""
    row = summary[summary["class_name"] == contracts.BY_OBJECT].iloc[0]
    numbers = {"mean IoU": f"{row['mean_iou']:.3f}", "median IoU": f"{row['median_iou']:.3f}",
               "5th percentile": f"{row['p5_iou']:.3f}", "mean boundary IoU": f"{row['mean_boundary_iou']:.3f}",
               "IoU under 0.5": f"{row['share_below_0.5']:.0%}", "objects scored": f"{row['n']:.0f}"}
    return ('<dl class="numbers">' + "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in
                                             numbers.items()) + "</dl>")


def _scores(prefix: str, tables: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    if (summary := tables.get(contracts.class_summary_table(prefix))) is not None:
        parts.append(table_html(_with_percent(summary), "By class. n counts objects; in the last row, classes."))
    if (sizes := tables.get(contracts.size_summary_table(prefix))) is not None:
        parts.append(table_html(_with_percent(sizes), "By size of the object: pixels of its true mask, COCO's bounds."))
    return "".join(parts)


def _comparison(folder: Path, comparison: pd.DataFrame | None) -> str:
    if comparison is None:
        return ""
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
    return (table_html(shown, "The same objects with the same clicks. The interval of the mean difference draws whole "
                              "photos anew: where it includes 0, nothing is shown yet.")
            + "".join(_figure(folder / name, words, LONGEST_SHEET) for name, words in pictures
                      if (folder / name).is_file()))


def _training(folder: str | Path | None, left_out: list[str]) -> str:
    """Curves and log of the training, as far as they are there and can be read."""
    if folder is None:
        return ""
    parts = []
    curves, log = Path(folder) / contracts.TRAINING_CURVES, Path(folder) / contracts.TRAINING_LOG
    words = "Loss, IoU and learning rate by epoch; epoch 0 is the untuned model."
    for path, show in ((curves, lambda: _figure(curves, words, LONGEST_CURVES)), (log, lambda: _log(log))):
        if path.is_file():
            try:
                parts.append(show())
            except UserError as error:
                left_out.append(f"not in {contracts.REPORT_PAGE}: {error}")
    return "".join(parts)


def _log(path: Path) -> str:
    log = read_table(path, ("epoch",), "train.py")
    shown = log[[column for column in LOG_COLUMNS if column in log]].tail(LOG_ROWS)
    shown = shown.apply(lambda column: [_short(cell) for cell in column])
    last = f", the last {LOG_ROWS}" if len(log) > LOG_ROWS else ""
    return (f"<details><summary>Training log, {len(log)} rows{last}</summary>"
            f"{table_html(shown, 'A row each epoch; epoch 0 is the untuned model.')}</details>")


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}" if cell else "-"
    except ValueError:
        return cell


def _samples(folder: Path, results: pd.DataFrame) -> str:
    """Drawn samples by class, lowest IoU first, and the contact sheet."""
    drawn = results[results["picture"] != ""]
    if drawn.empty:
        return ""
    turn = drawn.groupby("class_name").cumcount()   # classes take turns, so that each is seen
    kept = drawn.loc[turn.sort_values(kind="stable").index[:GALLERY_PICTURES]]
    more = f" {len(drawn) - len(kept)} more are in {contracts.SAMPLES_FOLDER}/." if len(kept) < len(drawn) else ""
    parts = [f'<p>Each picture: image with its prompt (+ on the object, - not on it), prediction, ground truth. '
             f'<span class="key" style="background:#56b4e9"></span> right '
             f'<span class="key" style="background:#d55e00"></span> too much '
             f'<span class="key" style="background:#f0e442"></span> missed.{more}</p>']
    for name, part in kept.groupby("class_name", sort=True):
        iou = pd.to_numeric(results.loc[results["class_name"] == name, "iou"], errors="coerce")
        mean = f", mean IoU {iou.mean():.3f}" if iou.notna().any() else ""
        count = f"{len(part)} of {len(iou)} objects{mean}" + (", lowest IoU first" if len(part) > 1 and mean else "")
        part = part.loc[pd.to_numeric(part["iou"], errors="coerce").sort_values(kind="stable").index]
        parts.append(f'<h3>{name_text(name)} <span class="quiet">{count}</span></h3><div class="gallery">')
        for row, sample in zip(part.index, part.to_dict("records")):
            score, truth = (f"IoU {float(sample['iou']):.2f}, ", ", ground truth") if sample["iou"] != "" else ("", "")
            alt = f"{name}, {score}no. {row + 1}: image with its prompt, prediction{truth}"
            parts.append(f"<figure>{picture(folder / sample['picture'], alt, LONGEST_PANEL)}</figure>")
        parts.append("</div>")
    sheet = folder / contracts.PREDICTIONS_PICTURE
    if sheet.is_file():
        words = "Contact sheet: the lowest, middle and highest IoU, then the samples drawn by lot"
        parts.append(f"<details><summary>{words}</summary>{_figure(sheet, words, LONGEST_SHEET)}</details>")
    return "".join(parts)


# ---- parts --------------------------------------------------------------------------------------------------

def text(value: object) -> str:
    """Any text, fit for an element or an attribute."""
    return html.escape(FORBIDDEN.sub("\ufffd", str(value)), quote=True)


def name_text(value: object) -> str:
    """A name for an element: kept apart, so that one written from right to left does not turn what is around it."""
    return f"<bdi>{text(value)}</bdi>"


def table_html(table: pd.DataFrame, caption: str) -> str:
    """A table under a line of words; its first column names the rows; floats with three decimals, NaN as a dash."""
    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.3f}" if np.isfinite(value) else "-"
        return name_text(value)

    head = "".join(f'<th scope="col">{text(HEADINGS.get(column, column))}</th>' for column in table.columns)
    body = "".join(
        f'<tr{" class=all" if row[0] in (contracts.BY_OBJECT, contracts.BY_CLASS) else ""}>'
        f'<th scope="row">{name_text(row[0])}</th>{"".join(f"<td>{cell(value)}</td>" for value in row[1:])}</tr>'
        for row in table.itertuples(index=False, name=None))
    return (f'<p class="quiet">{text(caption)}</p>'
            + wide(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", caption))


def wide(content: str, label: str) -> str:
    """What a narrow screen scrolls sideways, by keyboard too."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{text(label)}">{content}</div>'


def picture(path: Path, alt: str, longest: int) -> str:
    """An <img> that holds the picture itself, no side above `longest` pixels. Raises ImageError.

    A JPEG, which this run has written, goes in as it is where it is no larger.
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
    return (f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}" alt="{text(alt)}" '
            f'width="{size[0]}" height="{size[1]}">')


def _figure(path: Path, words: str, longest: int) -> str:
    return f"<figure>{wide(picture(path, words, longest), words)}<figcaption>{text(words)}</figcaption></figure>"


def _with_percent(summary: pd.DataFrame) -> pd.DataFrame:
    column = "share_below_0.5"
    return summary.assign(**{column: [f"{value:.0%}" if np.isfinite(value) else "-" for value in summary[column]]})

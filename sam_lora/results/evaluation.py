"""A test table, from its rows to the results folder: predict, score, summarise, compare, draw, report."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from sam_lora import contracts, plots
from sam_lora.data import imaging
from sam_lora.data.manifest import class_names, source_photos
from sam_lora.data.samples import Sample, check_samples, prompt_kinds, read_samples
from sam_lora.errors import UserError
from sam_lora.files import refuse_replacing
from sam_lora.model import processes
from sam_lora.model.meta import Sam
from sam_lora.model.precision import choose_precision
from sam_lora.results import comparison, comparison_pictures, report, sample_pictures
from sam_lora.results.other_results import OtherResults, read_other_results
from sam_lora.results.predict import Prediction, predict_rows
from sam_lora.results.prompt_kinds import PromptScores, kinds_sentence, kinds_table, summarise_kinds
from sam_lora.results.report import Findings
from sam_lora.results.requests import Candidate, Destination, Runtime, SampleTable
from sam_lora.results.summaries import as_text, score, size_of, summarise, summarise_sizes
from sam_lora.tables import write_tables


@dataclass(frozen=True)
class ReadTable:
    """A test table as read: its rows with their classes and photos, and the other model's results if asked for."""

    samples: Sequence[Sample]
    names: Sequence[str]
    photos: Sequence[str]
    other: OtherResults | None


@dataclass
class ScoredTable:
    """`results`: RESULT_COLUMNS in table order; `by_prompt`: by row, where other kinds of prompts were scored;
    `cells`: by row, what `sample_pictures.draw_sample` returned while the model went on."""

    results: pd.DataFrame
    by_prompt: dict[int, PromptScores] = field(default_factory=dict)
    cells: dict[int, np.ndarray] = field(default_factory=dict)


def evaluate_table(candidate: Candidate, table: SampleTable, destination: Destination,
                   runtime: Runtime) -> pd.DataFrame | None:
    """Predict and score every row, write the results folder, print the summary; returns the results.

    Several processes share the rows; all but the first write nothing but masks, and return None.

    Writes predictions.jpg, samples/, masks/, {prefix}_results.csv, report.html and, where there are labels, summaries
    by class and by size; with `compare_to` comparison.csv and its pictures; with `prompt_kinds`
    {prefix}_prompt_kinds.csv, its summary and click_curve.png. Raises UserError.
    """
    ranks, prefix, entries = runtime.ranks, candidate.prefix, contracts.results_entries(candidate.prefix)
    with processes.one_first(ranks):
        read = read_test_table(table)
    needed = {path.parent for sample in read.samples for path in (sample.image, sample.label) if path is not None}
    refuse_replacing([*sorted(needed), *([] if table.compare_to is None else [Path(table.compare_to)])],
                     destination.folder, entries)
    with processes.shared_folder(ranks, destination.folder, entries, destination.overwrite) as folder:
        sam = candidate.load(prompt_kinds(read.samples))
        precision = choose_precision(runtime.precision, runtime.device, sam, ranks)
        chosen = sample_pictures.choose_pictures(read.names, destination.num_pictures, destination.seed)
        scored = predict_table(sam, read, folder, replace(runtime, precision=precision), chosen,
                               kinds_seed=destination.seed if table.prompt_kinds else None)
        if not ranks.first:
            return None
        if chosen:
            sample_pictures.draw(scored.results, read.samples, folder, f"{prefix}: {Path(table.test_csv).name}",
                                 scored.cells)
        findings = Findings({contracts.results_table(prefix): scored.results})
        add_summaries(findings, scored.results, prefix)
        if read.other is not None:
            add_comparison(findings, scored.results, read, folder, candidate.tuned, destination.seed)
        if table.prompt_kinds:
            add_prompt_kinds(findings, scored, read.other, folder, candidate)
        write_tables({folder / name: content for name, content in findings.tables.items()})
        facts = {"model": candidate.name, "test table": table.test_csv, "objects": len(read.samples),
                 "photos": len(set(read.photos)), "precision": f"{precision} on {runtime.device.type}"}
        findings.notes += report.write_report(folder, prefix, facts, findings, candidate.training_folder)
    print_findings(findings, prefix, destination.folder)
    return scored.results


def read_test_table(table: SampleTable) -> ReadTable:
    """Read and check the table, and the results to compare with. Raises UserError."""
    samples = [sample for sample in read_samples(table.test_csv) if not sample.background]   # no prompt to try
    if not samples:
        raise UserError(f"{table.test_csv}: has nothing but photos without objects; expected rows with prompts")
    check_samples(samples, table.test_csv, need_labels=False)
    other = None
    if table.compare_to is not None:
        other = read_other_results(table.compare_to, samples, table.test_csv)
    return ReadTable(samples, class_names(samples), source_photos(samples), other)


def predict_table(sam: Sam, read: ReadTable, folder: Path, runtime: Runtime, chosen: Collection[int],
                  kinds_seed: int | None = None) -> ScoredTable:
    """Predict all rows, write their masks, score them; draw the `chosen` ones among those that this process has, if it
    is the first. `kinds_seed` as for `predict`."""
    (folder / contracts.PREDICTED_MASKS_FOLDER).mkdir(exist_ok=True)   # another process may have been faster
    chosen, cells = {*chosen}, {}
    if chosen:
        (folder / contracts.SAMPLES_FOLDER).mkdir(exist_ok=True)

    def finish(prediction: Prediction) -> dict:
        row, sample = prediction.row, read.samples[prediction.row]
        mask = f"{contracts.PREDICTED_MASKS_FOLDER}/{unique_stem(row, sample)}.png"
        (folder / mask).write_bytes(imaging.encode_png(prediction.mask))
        result = result_row(prediction, sample, read.names[row], mask)
        if row in chosen:
            result["picture"] = sample_pictures.picture_name(mask)
            if runtime.ranks.first:
                cells[row] = sample_pictures.draw_sample(sample, result, row + 1, folder)
        return {"result": result, "by_prompt": None if prediction.by_prompt is None else vars(prediction.by_prompt)}

    rows = predict_rows(sam, read.samples, finish, runtime, with_masks=True, kinds_seed=kinds_seed)
    by_prompt = {number: PromptScores(**row["by_prompt"]) for number, row in enumerate(rows) if row["by_prompt"]}
    results = pd.DataFrame([row["result"] for row in rows], columns=contracts.RESULT_COLUMNS)
    return ScoredTable(results, by_prompt, cells)


def result_row(prediction: Prediction, sample: Sample, class_name: str, mask: str) -> dict:
    """RESULT_COLUMNS of one row; `mask` is the path of its mask below the results folder."""
    truth_area = "" if prediction.truth is None else int(np.count_nonzero(prediction.truth))
    return {"class_name": class_name, "image": sample.image_text, "label": sample.label_text,
            **score(prediction.mask, prediction.truth), "predicted_iou": round(prediction.predicted_iou, 6),
            "mask_area": int(np.count_nonzero(prediction.mask)), "truth_area": truth_area,
            "size": "" if truth_area == "" else size_of(truth_area), "mask": mask, "picture": ""}


def unique_stem(row: int, sample: Sample) -> str:
    """A file name without suffix, unique by the number of the sample; the image's stem is there for the reader."""
    stem = re.sub(r"[^\w.-]+", "_", sample.image.stem)[:50]
    return f"{row + 1:05d}_{stem}"


def labelled(results: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a ground truth."""
    return results[results["label"] != ""]


def add_summaries(findings: Findings, results: pd.DataFrame, prefix: str) -> None:
    """Add the summaries by class and by size, and a note if some rows have no label."""
    scored = labelled(results)
    if len(scored):
        findings.tables[contracts.class_summary_table(prefix)] = summarise(scored)
        findings.tables[contracts.size_summary_table(prefix)] = summarise_sizes(scored)
    if len(scored) < len(results):
        findings.notes.append(f"{len(results) - len(scored)} of {len(results)} rows have no label: predicted, not "
                              "scored")


def add_comparison(findings: Findings, results: pd.DataFrame, read: ReadTable, folder: Path, tuned: bool,
                   seed: int) -> None:
    """Compare base with tuned. `tuned`: `results` are the tuned model's, and `read.other` the base model's."""
    scored = labelled(results)
    ious, rows = scored["iou"].to_numpy(float), scored.index
    base, after = (read.other.iou, ious) if tuned else (ious, read.other.iou)
    compared = comparison.compare(scored["class_name"].tolist(), [read.photos[row] for row in rows], base, after, seed)
    findings.tables[contracts.COMPARISON_TABLE] = compared
    findings.sentences.append(comparison.verdict(compared))
    findings.notes += comparison_pictures.draw(scored, [read.samples[row] for row in rows], read.other, folder, tuned,
                                               compared)


def add_prompt_kinds(findings: Findings, scored: ScoredTable, other: OtherResults | None, folder: Path,
                     candidate: Candidate) -> None:
    """Add how good the model is at each kind of prompt, beside the other model if that was scored so too."""
    table = kinds_table(scored.results, scored.by_prompt)
    findings.sentences.append(kinds_sentence(table))
    if table.empty:
        return
    others = None if other is None else other.prompt_kinds(table)
    summary = summarise_kinds(table, candidate.tuned, others)
    findings.tables |= {contracts.prompt_kinds_table(candidate.prefix): table,
                        contracts.prompt_summary_table(candidate.prefix): summary}
    curves = {name: [content[column].mean() for column in contracts.CLICK_COLUMNS] for name, content in
              zip(("tuned", "base") if candidate.tuned else ("base", "tuned"), (table, others)) if content is not None}
    plots.click_curve(curves, folder / contracts.CLICK_CURVE)


def print_findings(findings: Findings, prefix: str, folder: Path) -> None:
    """Print summaries, notes and sentences; tables with a row per object only go into files."""
    per_object = (contracts.results_table(prefix), contracts.prompt_kinds_table(prefix))
    shown = [as_text(table) + "\n" for name, table in findings.tables.items() if name not in per_object]
    print("\n".join([*shown, *findings.notes, *findings.sentences,
                     f"results: {folder}, all on one page: {Path(folder) / contracts.REPORT_PAGE}"]))

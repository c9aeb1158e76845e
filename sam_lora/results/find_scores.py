"""A table's photos searched without its prompts: what was found is scored, drawn and reported."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from sam_lora import contracts, plots
from sam_lora.data import imaging
from sam_lora.data.samples import check_samples, read_samples
from sam_lora.drawing import MISSED, RIGHT, TOO_MUCH
from sam_lora.files import refuse_replacing
from sam_lora.model import processes
from sam_lora.model.precision import autocast, choose_precision
from sam_lora.results import pictures, report
from sam_lora.results.detection import (
    AveragePrecision,
    Outcome,
    average_precision,
    outcomes,
    precision_recall,
    scores_of,
)
from sam_lora.results.find import LOWEST_SCORE
from sam_lora.results.found import ScannedPhoto, decode_mask
from sam_lora.results.report import Findings
from sam_lora.results.requests import Candidate, Destination, FindTable, Runtime
from sam_lora.results.scan import scan_photos, search_of, threshold_of
from sam_lora.results.summaries import as_text
from sam_lora.tables import write_tables
from sam_lora.workers import map_in_threads

NO_CLASSES = "the model has no classes: an object of any class counts as found"


@dataclass(frozen=True)
class Scan:
    """What was searched: `photos` with truth; objects count from `threshold` on, by class unless `class_agnostic`."""

    photos: Sequence[ScannedPhoto]
    outcomes: Sequence[Outcome]
    threshold: float
    class_agnostic: bool


def find_in_table(candidate: Candidate, request: FindTable, destination: Destination,
                  runtime: Runtime) -> pd.DataFrame | None:
    """Find the objects of a labelled table's photos, write the results folder, print a summary, which is returned.

    Several processes share the photos; all but the first write nothing, and return None. Raises UserError.
    """
    ranks, prefix, entries = runtime.ranks, candidate.prefix, contracts.results_entries(candidate.prefix)
    with processes.one_first(ranks):
        samples = read_samples(request.test_csv)
        check_samples(samples, request.test_csv, need_labels=True)
    folders = {path.parent for sample in samples for path in (sample.image, sample.label) if path is not None}
    refuse_replacing(sorted(folders), destination.folder, entries)
    with processes.shared_folder(ranks, destination.folder, entries, destination.overwrite) as folder:
        sam = candidate.load(set())
        precision = choose_precision(runtime.precision, runtime.device, sam, ranks)
        search = search_of(candidate, sam, request.wanted, LOWEST_SCORE, autocast(precision, runtime.device))
        photos = scan_photos(samples, search, ranks)
        if not ranks.first:
            return None
        if request.wanted.classes is not None:
            photos = [only(photo, request.wanted.classes) for photo in photos]
        class_agnostic = not candidate.tuned
        scan = Scan(photos, outcomes(photos, class_agnostic), threshold_of(sam, request.wanted), class_agnostic)
        findings = Findings({contracts.find_table(prefix): find_table(scan),
                             contracts.find_summary_table(prefix): summarise(scan)})
        findings.sentences.append(sentence(findings.tables[contracts.find_summary_table(prefix)]))
        if class_agnostic:
            findings.notes.append(NO_CLASSES)
        write_tables({folder / name: content for name, content in findings.tables.items()})
        plots.precision_recall_curve(curves(scan), folder / contracts.FIND_CURVE)
        draw_worst(scan, destination.num_pictures, folder)
        facts = {"model": candidate.name, "test table": request.test_csv, "photos": len(photos),
                 "objects": sum(len(photo.truth) for photo in photos),
                 "precision": f"{precision} on {runtime.device.type}"}
        findings.notes += report.write_report(folder, prefix, facts, findings, candidate.training_folder)
    summary = findings.tables[contracts.find_summary_table(prefix)]
    print("\n".join([as_text(summary) + "\n", *findings.notes, *findings.sentences,
                     f"results: {destination.folder}, all on one page: {destination.folder / contracts.REPORT_PAGE}"]))
    return summary


def only(photo: ScannedPhoto, classes: Sequence[str]) -> ScannedPhoto:
    """The photo with the truth of these classes alone."""
    truth = tuple((name, mask) for name, mask in photo.truth if name in classes)
    return ScannedPhoto(photo.image, photo.name, photo.size_wh, photo.found, truth, photo.seconds)


# ---- tables -----------------------------------------------------------------------------------------------

def find_table(scan: Scan) -> pd.DataFrame:
    """FIND_COLUMNS: what was found from the threshold on, and what was missed, by photo."""
    from pycocotools import mask as coco_mask
    kept = [outcome for outcome in scan.outcomes if outcome.found.score >= scan.threshold]
    rows, hit = defaultdict(list), defaultdict(set)
    for outcome in kept:
        thing = outcome.found
        rows[outcome.photo].append((thing.class_name, "hit" if outcome.hit else "false", round(thing.score, 6),
                                    round(outcome.iou, 6), *thing.box))
        if outcome.hit:
            hit[outcome.photo].add(outcome.truth)
    for place, photo in enumerate(scan.photos):
        for number, (name, mask) in enumerate(photo.truth):
            if number not in hit[place]:
                x, y, width, height = (int(value) for value in coco_mask.toBbox(mask))
                rows[place].append((name, "missed", "", "", x, y, x + width, y + height))
    return pd.DataFrame([(photo.name, *row) for place, photo in enumerate(scan.photos) for row in rows[place]],
                        columns=contracts.FIND_COLUMNS)


def summarise(scan: Scan) -> pd.DataFrame:
    """FIND_SUMMARY_COLUMNS: a row for each class, and one for all."""
    photos, rows = scan.photos, []
    classes = sorted({name for photo in photos for name, _ in photo.truth})
    everything = average_precision(photos, class_agnostic=scan.class_agnostic)
    if not scan.class_agnostic and len(classes) > 1:
        for name in classes:
            own = [only(photo, [name]) for photo in photos]
            of_class = [outcome for outcome in scan.outcomes if outcome.found.class_name == name]
            rows.append(_summary_row(name, own, of_class, scan.threshold, average_precision(photos, [name])))
    rows.append(_summary_row(contracts.BY_OBJECT, photos, scan.outcomes, scan.threshold, everything))
    return pd.DataFrame(rows, columns=contracts.FIND_SUMMARY_COLUMNS).round(6)


def _summary_row(name: str, photos: Sequence[ScannedPhoto], of_class: Sequence[Outcome], threshold: float,
                 precision: AveragePrecision) -> dict:
    scores = scores_of(photos, of_class, threshold)
    return {"class_name": name, "photos": len(photos), "objects": sum(len(photo.truth) for photo in photos),
            **vars(precision), "threshold": threshold, "precision": scores.precision, "recall": scores.recall,
            "f1": scores.f1, "count_error": scores.count_error, "false_on_background": scores.false_on_background,
            "seconds_a_photo": np.mean([photo.seconds for photo in photos])}


def sentence(summary: pd.DataFrame) -> str:
    """What the summary says, in plain words."""
    row = summary.iloc[-1]
    return (f"Without a prompt, at a score of {row['threshold']:.2f} or more: {row['recall']:.0%} of {row['objects']} "
            f"objects in {row['photos']} photos found, {row['precision']:.0%} of what was found is right "
            f"(F1 {row['f1']:.3f}); AP {row['ap']:.3f}, AP50 {row['ap50']:.3f}; {row['seconds_a_photo']:.2f} s a "
            "photo.")


def curves(scan: Scan) -> dict[str, tuple[list[float], list[float]]]:
    """Class -> (recalls, precisions)."""
    if scan.class_agnostic:
        return {"all": precision_recall(scan.photos, scan.outcomes)}
    classes = sorted({name for photo in scan.photos for name, _ in photo.truth})
    return {name: precision_recall([only(photo, [name]) for photo in scan.photos],
                                   [outcome for outcome in scan.outcomes if outcome.found.class_name == name])
            for name in classes}


# ---- pictures ---------------------------------------------------------------------------------------------

def draw_worst(scan: Scan, count: int, folder: Path) -> None:
    """Pictures of up to `count` photos, those with the most wrong first: found/<place>_<photo>.jpg."""
    kept = defaultdict(list)
    for outcome in scan.outcomes:
        if outcome.found.score >= scan.threshold:
            kept[outcome.photo].append(outcome)

    def errors(place: int) -> int:
        hits = sum(outcome.hit for outcome in kept[place])
        return len(kept[place]) + len(scan.photos[place].truth) - 2 * hits
    worst = sorted(range(len(scan.photos)), key=lambda place: (-errors(place), place))[:count]
    if worst:
        (folder / contracts.FOUND_FOLDER).mkdir()

    def draw(rank: int) -> None:
        photo, own = scan.photos[worst[rank]], kept[worst[rank]]
        hit = {outcome.truth for outcome in own if outcome.hit}
        marks = [(decode_mask(mask), MISSED, name) for number, (name, mask) in enumerate(photo.truth)
                 if number not in hit]
        marks += [(decode_mask(outcome.found.mask), RIGHT if outcome.hit else TOO_MUCH,
                   f"{outcome.found.class_name} {outcome.found.score:.2f}") for outcome in reversed(own)]
        heading = (f"{photo.name}: {len(hit)} of {len(photo.truth)} found, {len(own) - len(hit)} false")
        name = f"{rank + 1:03d}_{photo.image.stem[:60]}.jpg"
        imaging.write_jpeg(folder / contracts.FOUND_FOLDER / name,
                           pictures.found_photo(imaging.load_image(photo.image), marks, heading))
    for _ in tqdm(map_in_threads(draw, range(len(worst))), "drawing", len(worst), unit="picture", disable=None):
        pass

"""Photos without ground truth: prompts in, masks out, in the forms that annotation tools read.

`predict_image` takes one photo with its prompts from the command line, `predict_folder` a folder of photos with a table
of prompts. Masks as PNG hold every pixel; the other forms are made from them.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.data.samples import Sample, prompt_kinds, sample_problem
from sam_lora.drawing import Example
from sam_lora.errors import UserError
from sam_lora.files import atomic_path, refuse_existing, refuse_replacing
from sam_lora.model import processes
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.model.precision import autocast, choose_precision
from sam_lora.results import pictures
from sam_lora.results.annotation_files import AnnotatedMask, annotated_mask, write_coco, write_yolo
from sam_lora.results.predict import Prediction, predict, predict_rows
from sam_lora.results.prompt_table import PromptTable, read_prompt_table
from sam_lora.results.requests import Candidate, Destination, PhotoFolder, Runtime, SinglePhoto
from sam_lora.results.sample_pictures import choose_pictures
from sam_lora.workers import map_in_threads

ENTRIES = contracts.results_entries()
NAMED_EMPTY = 3      # rows with an empty mask that the summary names


# ---- one photo ----------------------------------------------------------------------------------------------

def predict_image(candidate: Candidate, photo: SinglePhoto, destination: Destination,
                  runtime: Runtime) -> list[Prediction]:
    """Predict one or several objects of one photo, encoded once; write a mask for each and one overlay picture.

    Raises UserError.
    """
    path = Path(photo.image)
    samples = [Sample(path, None, tuple(points or ()), tuple(labels or [1] * len(points or ())), box, photo.image,
                      "") for points, labels, box in photo.prompts]
    several = len(samples) > 1
    sizes = {}
    for number, sample in enumerate(samples, start=1):
        if problem := sample_problem(sample, sizes, need_labels=False):
            raise UserError(f"object {number}: {problem}" if several and not isinstance(sizes[path], str) else problem)
    folder = destination.folder
    mask_paths = [folder / contracts.single_mask(path.stem, number if several else None)
                  for number in range(1, len(samples) + 1)]
    overlay_path = folder / contracts.single_overlay(path.stem)
    refuse_existing([*mask_paths, overlay_path], destination.overwrite)
    sam = candidate.load(prompt_kinds(samples))
    side = sam.image_encoder.img_size
    dataset = PromptedImages(samples, side, len(samples), with_targets=False, with_masks=False)
    loader = make_loader(dataset, side, 1, 0, pin_memory=False)
    precision = choose_precision(runtime.precision, runtime.device, sam, runtime.ranks)
    predictions = list(predict(sam, batches(loader), autocast(precision, runtime.device)))
    pixels = imaging.load_image(path)
    examples = [example_of(pixels, sample, prediction.mask) for sample, prediction in zip(samples, predictions)]
    overlay = pictures.numbered_overlay(examples) if several else pictures.overlay(examples[0])
    with contextlib.ExitStack() as stack:  # all in place, or none
        for mask_path, prediction in zip(mask_paths, predictions):
            stack.enter_context(atomic_path(mask_path)).write_bytes(imaging.encode_png(prediction.mask))
        imaging.write_jpeg(overlay_path, overlay)
    for mask_path, prediction in zip(mask_paths, predictions):
        area = np.count_nonzero(prediction.mask)
        where = mask_path if several else f"{mask_path} and {overlay_path}"
        print(f"{where}: mask of {area} px ({area / prediction.mask.size:.1%} of the image), "
              f"predicted IoU {prediction.predicted_iou:.2f}")
    if several:
        print(f"{overlay_path}: all {len(samples)}, numbered")
    return predictions


def example_of(pixels: np.ndarray, sample: Sample, mask: np.ndarray) -> Example:
    return Example(pixels, sample.points, sample.point_labels, sample.box, mask, None)


# ---- a folder of photos --------------------------------------------------------------------------------------

def predict_folder(candidate: Candidate, photos: PhotoFolder, destination: Destination,
                   runtime: Runtime) -> dict | None:
    """Predict every row of the table of prompts, each image encoded once; returns what predictions.json holds.

    Several processes share the images; all but the first write nothing but masks, and return None.

    Writes masks/<image>_<n>.png, overlays/<image>.jpg of some images, predictions.json (COCO, RLE) and, with
    `save_yolo`, the data set yolo/. An empty mask is only written as a PNG. Raises UserError.
    """
    ranks = runtime.ranks
    with processes.one_first(ranks):
        table = read_prompt_table(photos)
    if Path(photos.images_dir).resolve() == destination.folder.resolve():
        raise UserError(f"{destination.folder}: holds the images of --images_dir; give another --output_dir")
    refuse_replacing(sorted({sample.image.parent for sample in table.samples}), destination.folder, ENTRIES)
    with processes.shared_folder(ranks, destination.folder, ENTRIES, destination.overwrite) as folder:
        def finish(prediction: Prediction) -> dict:
            item = table.objects[prediction.row]
            path = folder / item.mask_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(imaging.encode_png(prediction.mask))
            return vars(annotated_mask(prediction.mask, prediction.predicted_iou, item, photos.save_yolo))

        sam = candidate.load(prompt_kinds(table.samples))
        annotated = [AnnotatedMask(**mask) for mask in
                     predict_rows(sam, table.samples, finish, runtime, with_masks=False)]
        if not ranks.first:
            return None
        content = write_coco(table, annotated, folder)
        drawn = draw_overlays(table, destination, folder)
        if photos.save_yolo:
            write_yolo(table, annotated, folder / contracts.YOLO_FOLDER)
    print(f"{len(table.samples)} masks of {len(table.rows_of)} images, {drawn} of them drawn")
    print_empty(annotated, photos.prompts_csv)
    print(f"results: {destination.folder}")
    return content


def print_empty(annotated: Sequence[AnnotatedMask], prompts_csv: str) -> None:
    """Name the rows, by their lines in the file, whose masks are empty and so left out of the annotations."""
    lines = [str(line) for line, item in enumerate(annotated, start=2) if not item.annotation["area"]]
    if lines:
        more = ", …" if len(lines) > NAMED_EMPTY else ""
        print(f"{len(lines)} of these masks are empty and left out of the annotations: "
              f"row {', '.join(lines[:NAMED_EMPTY])}{more} of {prompts_csv}")


def draw_overlays(table: PromptTable, destination: Destination, folder: Path) -> int:
    """Draw up to `num_pictures` images with all their masks; returns how many."""
    if not destination.num_pictures:
        return 0
    groups = list(table.rows_of.values())
    first_classes = [table.class_names[rows[0]] for rows in groups]
    chosen = choose_pictures(first_classes, destination.num_pictures, destination.seed)

    def draw(rows: Sequence[int]) -> None:
        pixels = imaging.load_image(table.samples[rows[0]].image)
        examples = (example_of(pixels, table.samples[row], imaging.load_mask(folder / table.objects[row].mask_name))
                    for row in rows)
        imaging.write_jpeg(folder / contracts.OVERLAYS_FOLDER / f"{table.objects[rows[0]].stem}.jpg",
                           pictures.numbered_overlay(examples))
    drawn = map_in_threads(draw, [groups[position] for position in chosen])
    for _ in tqdm(drawn, "drawing", len(chosen), unit="picture", disable=None):
        pass
    return len(chosen)

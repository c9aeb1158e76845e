"""What the stages hand each other: every folder, file and column name."""

SPLITS = ("train", "val", "test")

# 1. class folders, made by the converters; what their file names mean: data/names.py
CLASS_FOLDER_PREFIX = "Class_"
BACKGROUND_FOLDER = "background"          # beside the class folders: photos, or tiles of them, without objects
BACKGROUND_FILE = "background.csv"        # their rows, with the manifest's columns and no mask
IMAGES_FOLDER = "images"
MASKS_FOLDER = "masks"
MANIFEST_FILE = "instances.csv"
CLASSES_FILE = "classes.json"
CONVERSION_REPORT_FILE = "conversion_report.csv"
PREVIEW_FILE = "preview.jpg"
MANIFEST_COLUMNS = (   # the fields of data.manifest.ManifestRow
    "image_path",      # crop, relative to the manifest's folder: Class_crack/images/a_0003.png
    "mask_path",       # its mask, likewise
    "class_id",        # the data set's own id
    "class_name",      # the true name, not the folder's slug
    "source_image",    # path of the photo below the data set's folder, with /
    "source_split",    # train, val, test as the data set has it; empty where it has none
    "source_id",       # "labels/a.txt:3" or "annotation 17"
    "source_width", "source_height",                  # of the photo, upright unless its annotations are not; pixels
    "crop_x0", "crop_y0", "crop_x1", "crop_y1",       # the crop's box in the photo, pixels, x1 and y1 exclusive
    "mask_area",       # foreground pixels
    "rasteriser",      # how the mask was drawn
    "source_digest",   # of the photo's file: equal for copies of a photo under other names
)
PHOTO_COLUMN = "photo"     # a column that a user may add: rows with the same text are of one photo

# 2. split tables
OUTPUT_TABLE = "output.csv"
POINT_COLUMNS = tuple(f"point{i}_{axis}" for i in (1, 2, 3) for axis in "xy")
SPLIT_COLUMNS = ("image_path", "mask_path", "class_id", "class_name", *POINT_COLUMNS)
SOURCE_COLUMN = "source_image"     # optional in a split table
SPLIT_COLUMN = "split"             # in output.csv

# 3. training tables
TRAINING_COLUMNS = ("image", "label", "points")
POINT_LABELS_COLUMN = "point_labels"   # optional: 1 foreground, 0 background
BOX_COLUMN = "box"                     # optional: [x0,y0,x1,y1]
# a user's own table of prompts for images without ground truth: image, points and/or box, and these optional ones
CLASS_NAME_COLUMN = "class_name"

# 4. training
CHECKPOINTS_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
FINAL_CHECKPOINT = "sam_lora_final.ckpt"
TRAINING_LOG = "training_log.csv"
TRAINING_CURVES = "training_curves.png"
FEATURE_CACHE_FOLDER = ".feature_cache"

# 5. results
PREDICTIONS_PICTURE = "predictions.jpg"
SAMPLES_FOLDER = "samples"
PREDICTED_MASKS_FOLDER = "masks"
COMPARISON_TABLE = "comparison.csv"
COMPARISON_PICTURE = "comparison.png"
IMPROVED_PICTURE = "improved.jpg"
REGRESSED_PICTURE = "regressed.jpg"
REPORT_PAGE = "report.html"
RESULT_COLUMNS = (
    "class_name", "image", "label",                 # the paths as the training table has them
    "iou", "dice", "boundary_iou",                  # empty for a row without a label
    "predicted_iou",                                # what the model itself thinks its mask is worth
    "mask_area", "truth_area",                      # foreground pixels; truth_area empty without a label
    "size",                                         # of the object, by truth_area: SIZES; empty without a label
    "mask", "picture",                              # below the results folder; picture empty where none was drawn
)
SUMMARY_COLUMNS = ("class_name", "n", "mean_iou", "median_iou", "p5_iou", "mean_dice", "mean_boundary_iou",
                   "share_below_0.5")
SIZES = {"small": (0, 32 ** 2), "medium": (32 ** 2, 96 ** 2), "large": (96 ** 2, None)}  # COCO's; pixels, end exclusive
SIZE_SUMMARY_COLUMNS = ("size", "pixels", *SUMMARY_COLUMNS[1:])
MAX_CLICKS = 10
PROMPT_KINDS = ("table",             # the table's own prompt
                "random_points",     # as many other foreground points, anywhere in the object
                "point",             # the pixel of the object farthest from the border
                "point_best_of_3",   # the same; of the three ambiguity masks the one that the model prefers
                "box",               # tight around the true mask
                "jittered_box",      # each side off by about a tenth of the box
                "box_and_point")
CLICK_COLUMNS = tuple(f"clicks_{number}" for number in range(1, MAX_CLICKS + 1))   # IoU after so many clicks
CLICKS_TO = {f"clicks_to_{iou:.2f}": iou for iou in (0.80, 0.85, 0.90)}            # how many; MAX_CLICKS: or never
PROMPT_KINDS_COLUMNS = ("class_name", "image", "label", *PROMPT_KINDS, *CLICK_COLUMNS, *CLICKS_TO)
PROMPT_SUMMARY_COLUMNS = ("prompt", "n", "base", "tuned")   # mean IoU, in the last rows clicks; empty: not known
PROMPT_WORDS = {
    "table": "the table's own", "random_points": "as many random points",
    "point": "one point, farthest from the border", "point_best_of_3": "that point, best of three masks",
    "box": "exact box", "jittered_box": "box, sides about 10 % off", "box_and_point": "box and that point",
    "clicks_1": "that point alone",
    **{name: f"that point and {number} corrective click{'s' * (number > 1)}"
       for number, name in enumerate(CLICK_COLUMNS) if number},
    **{name: f"clicks to IoU {iou:.2f} ({MAX_CLICKS} = never)" for name, iou in CLICKS_TO.items()}}
CLICK_CURVE = "click_curve.png"
FIND_COLUMNS = ("image", "class_name", "outcome",    # hit, false (found, but not there), missed
                "score",                             # empty for what was missed
                "iou",                               # with the object hit, else with the nearest of its class
                "x0", "y0", "x1", "y1")              # box, pixels of the photo
FIND_SUMMARY_COLUMNS = ("class_name", "photos", "objects", "ap", "ap50", "ap75", "ar100",     # COCO's, of masks
                        "threshold", "precision", "recall", "f1",        # of objects with at least that score, IoU 0.5
                        "count_error",               # mean over photos of |found - there|
                        "false_on_background",       # objects found in a photo that has none, on average
                        "seconds_a_photo")
FIND_CURVE = "precision_recall.png"
FOUND_FOLDER = "found"                               # pictures of whole photos: hits, false and missed objects
COMPARISON_COLUMNS = ("class_name", "n", "photos", "base_iou", "tuned_iou", "mean_difference", "ci95_low", "ci95_high",
                      "wins", "losses")
BY_OBJECT, BY_CLASS = "all classes (by object)", "all classes (by class)"  # the last two rows of both
OVERLAYS_FOLDER = "overlays"
COCO_PREDICTIONS = "predictions.json"
YOLO_FOLDER = "yolo"
TUNED_RESULTS_FOLDER = "finetuned_sam_results2"
TUNED_RESULTS_PREFIX = "finetuned_sam"
BASE_RESULTS_FOLDER = "base_sam_results"
BASE_RESULTS_PREFIX = "base_sam"

# who makes which table, for the error that says what to run
MADE_BY = {
    "class folders": "process_yolo_to_classwise.py (YOLO) or process_coco_dataset.py (COCO)",
    "split": "Create_yolo_csv.py (YOLO) or Create_csv.py (COCO)",
    "training": "reformated_csv.py",
}


def split_table(split: str) -> str:
    """File name of a split table, e.g. train.csv."""
    return f"{split}.csv"


def training_table(split: str) -> str:
    """File name of a training table, e.g. train_reformatted.csv."""
    return f"{split}_reformatted.csv"


def epoch_checkpoint(epoch: int, val_iou: float) -> str:
    """File name of a top-k checkpoint, e.g. sam-lora-epoch=03-val_iou=0.9123.ckpt."""
    return f"sam-lora-epoch={epoch:02d}-val_iou={val_iou:.4f}.ckpt"


def results_table(prefix: str) -> str:
    return f"{prefix}_results.csv"


def class_summary_table(prefix: str) -> str:
    return f"{prefix}_class_iou_summary.csv"


def size_summary_table(prefix: str) -> str:
    return f"{prefix}_size_iou_summary.csv"


def prompt_kinds_table(prefix: str) -> str:
    return f"{prefix}_prompt_kinds.csv"


def prompt_summary_table(prefix: str) -> str:
    return f"{prefix}_prompt_kinds_summary.csv"


def find_table(prefix: str) -> str:
    return f"{prefix}_find.csv"


def find_summary_table(prefix: str) -> str:
    return f"{prefix}_find_summary.csv"


def earlier_prompt_table(prefix: str) -> str:
    """What earlier versions wrote instead of `prompt_kinds_table`."""
    return f"{prefix}_prompt_trials.csv"


def results_entries(prefix: str = TUNED_RESULTS_PREFIX) -> tuple[str, ...]:
    """Everything that step 5 writes into a results folder: scores of a table, by either script, and annotations.

    One run replaces all of it, for any kind of run writes masks/, and what told of other masks is then wrong.
    """
    tables = [table(name) for name in dict.fromkeys((prefix, TUNED_RESULTS_PREFIX, BASE_RESULTS_PREFIX))
              for table in (results_table, class_summary_table, size_summary_table, prompt_kinds_table,
                            prompt_summary_table, earlier_prompt_table, find_table, find_summary_table)]
    return (PREDICTIONS_PICTURE, SAMPLES_FOLDER, PREDICTED_MASKS_FOLDER, *tables, COMPARISON_TABLE, COMPARISON_PICTURE,
            IMPROVED_PICTURE, REGRESSED_PICTURE, CLICK_CURVE, REPORT_PAGE, OVERLAYS_FOLDER, COCO_PREDICTIONS,
            YOLO_FOLDER, FIND_CURVE, FOUND_FOLDER)


def single_mask(stem: str, number: int | None = None) -> str:
    """File name of the mask predicted for one image given on the command line; numbered where it has several."""
    return f"{stem}_mask.png" if number is None else f"{stem}_mask_{number}.png"


def single_overlay(stem: str) -> str:
    return f"{stem}_overlay.jpg"

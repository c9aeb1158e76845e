"""The whole walkthrough on a small data set made on the spot: what `make demo` runs.

Writes everything to demo_output/ (an earlier demo there is replaced), and ends with base against tuned per class.

    python demo/run_demo.py
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sam_lora import cli, contracts  # noqa: E402
from sam_lora.errors import UserError  # noqa: E402

MARKER = ".made_by_demo"  # only a folder that carries it is ever replaced


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output_dir", default="demo_output", metavar="DIR", help="everything goes here")
    parser.add_argument("--num_epochs", type=cli.positive_int, default=10, metavar="N", help="epochs of train.py")
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    out = Path(args.output_dir).resolve()
    if out.exists():
        if not (out / MARKER).is_file():
            raise UserError(f"{out}: is there already and not from a demo; give another --output_dir")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()
    started = time.perf_counter()

    step(out, "A small data set, in YOLO and in COCO form", "demo/make_dataset.py", "--output_dir", "data",
         "--seed", str(args.seed))
    step(out, "1a  YOLO polygons -> class folders", "process_yolo_to_classwise.py", "--dataset_dir", "data/yolo")
    step(out, "2a  class folders -> train.csv val.csv test.csv", "Create_yolo_csv.py")
    step(out, "3   -> {train,val,test}_reformatted.csv", "reformated_csv.py")
    step(out, "5   SAM as released, on the test table", "run_base_sam_inference.py", "--model_type", "vit_mini",
         "--test_csv", "test_reformatted.csv")
    step(out, "4   fine-tune by LoRA", "train.py", "--model_type", "vit_mini", "--num_epochs", str(args.num_epochs))
    step(out, "5   the tuned SAM, on the same table", "run_inference.py", "--test_csv", "test_reformatted.csv",
         "--compare_to", f"{contracts.BASE_RESULTS_FOLDER}/{contracts.results_table(contracts.BASE_RESULTS_PREFIX)}")
    step(out, "6   a plain SAM checkpoint for every other tool", "export_sam.py")
    step(out, "1b  the same pictures from COCO, whole this time", "process_coco_dataset.py", "--coco_json",
         "data/coco/annotations.json", "--images_dir", "data/coco/images", "--output_dir", "coco/processed_dataset",
         "--no_crop")
    step(out, "2b  ", "Create_csv.py", "--dataset_dir", "coco/processed_dataset", "--output_dir", "coco")
    step(out, "3   ", "reformated_csv.py", "--input_dir", "coco", "--output_dir", "coco")
    step(out, "4   fine-tune to find objects without a click, too", "train.py", "--model_type", "vit_mini",
         "--train_csv", "coco/train_reformatted.csv", "--save_dir", "coco/checkpoints", "--prompts_per_image", "4",
         "--color_jitter", "0.3", "--num_epochs", str(args.num_epochs))
    find = ["--checkpoint", f"coco/checkpoints/{contracts.FINAL_CHECKPOINT}", "--num_pictures", "15"]
    step(out, "5   how well it finds those of the test photos", "run_inference.py", *find, "--test_csv",
         "coco/test_reformatted.csv", "--find", "--output_dir", "coco/found_scores")
    step(out, "    and what people do with new photos", "run_inference.py", *find, "--images_dir", "data/coco/images",
         "--output_dir", "coco/found")

    print_comparison(out)
    print(f"\npictures  {out / contracts.BASE_RESULTS_FOLDER / contracts.PREDICTIONS_PICTURE}  (before)"
          f"\n          {out / contracts.TUNED_RESULTS_FOLDER / contracts.PREDICTIONS_PICTURE}  (after)"
          f"\n          {out / contracts.CHECKPOINTS_FOLDER / contracts.TRAINING_CURVES}"
          f"\n          {out / 'coco/found_scores' / contracts.FOUND_FOLDER}  (found without a click)"
          f"\n{(time.perf_counter() - started) / 60:.1f} minutes")


def step(folder: Path, title: str, script: str, *flags: str) -> None:
    """Run one script in `folder`, as a person would; its failure is the demo's."""
    print(f"\n== {title}\n$ python {script} {' '.join(flags)}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / script), *flags], cwd=folder)
    if done.returncode:
        raise UserError(f"{script} ended with exit code {done.returncode}")
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)


def print_comparison(out: Path) -> None:
    """Base against tuned per class, from the two summaries."""
    import pandas as pd
    summaries = [pd.read_csv(out / folder / contracts.class_summary_table(prefix)).set_index("class_name")
                 for folder, prefix in ((contracts.BASE_RESULTS_FOLDER, contracts.BASE_RESULTS_PREFIX),
                                        (contracts.TUNED_RESULTS_FOLDER, contracts.TUNED_RESULTS_PREFIX))]
    base, tuned = (summary["mean_iou"] for summary in summaries)
    print("\n== Mean IoU on the test table: the same objects, the same clicks, the same scoring\n"
          f"{'class':<28}{'n':>5}{'base':>9}{'tuned':>9}{'change':>9}")
    for name, n in summaries[0]["n"].items():
        print(f"{name:<28}{n:>5}{base[name]:>9.3f}{tuned[name]:>9.3f}{tuned[name] - base[name]:>+9.3f}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())

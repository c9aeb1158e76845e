"""Both inference scripts under torchrun: real processes share the rows, and write what one process writes."""

from pathlib import Path

import numpy as np
import pandas as pd
from conftest import files_below, make_crop
from several_processes import together

import run_base_sam_inference
from sam_lora.data import imaging


def assert_same_files(ours: Path, theirs: Path) -> None:
    assert files_below(ours) == files_below(theirs)
    for name in files_below(theirs):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_a_table_with_everything_written_about_it(infer, crops, base_results, mini_weights, mini_checkpoint, tmp_path):
    """Three batches of two rows: two for the first process, one for the other."""
    flags = ("--batch_size", "2", "--prompt_kinds", "--compare_to", base_results, "--num_pictures", "4")
    one = infer(*flags)
    done = together(tmp_path, "run_inference.py", "--checkpoint", mini_checkpoint, "--base_checkpoint", mini_weights,
                    "--test_csv", crops.test_csv, "--output_dir", "several", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("vit_mini at 256 px") == done.stdout.count("results: several") == 1
    assert_same_files(tmp_path / "several", one)


def test_a_folder_of_photos_and_more_processes_than_batches(mini_weights, tmp_path, monkeypatch):
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    for name in ("a.jpg", "sub/b.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        imaging.write_jpeg(photos / name, make_crop(rng, True)[0])
    (tmp_path / "prompts.csv").write_text('image,points,class_name\na.jpg,"[[20,20]]",disc\nsub/b.jpg,"[[9,9]]",\n'
                                          'a.jpg,"[[30,25],[5,5]]",disc\n')
    flags = ["--model_type", "vit_mini", "--checkpoint", mini_weights, "--images_dir", "photos", "--prompts_csv",
             "prompts.csv", "--save_yolo", "--batch_size", "1"]
    monkeypatch.chdir(tmp_path)
    run_base_sam_inference.main(run_base_sam_inference.get_args_parser().parse_args(
        [*map(str, flags), "--device", "cpu", "--output_dir", "one"]))
    done = together(tmp_path, "run_base_sam_inference.py", *flags, "--output_dir", "three", processes=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 masks of 2 images") == 1
    assert "yolo/data.yaml" in files_below(tmp_path / "three")
    assert_same_files(tmp_path / "three", tmp_path / "one")


def test_an_image_that_breaks_in_one_process_ends_all_and_leaves_nothing(crops, mini_weights, tmp_path):
    broken = crops.folder / pd.read_csv(crops.test_csv)["image"][3]   # in the second batch: the second process's
    broken.write_bytes(broken.read_bytes()[:200])                     # its size can still be read
    done = together(tmp_path, "run_base_sam_inference.py", "--model_type", "vit_mini", "--checkpoint", mini_weights,
                    "--test_csv", crops.test_csv, "--output_dir", "out", "--batch_size", "2")
    assert done.returncode != 0
    assert done.stderr.count(f"error: {broken}: ") == 1, done.stderr
    assert "another process of this run has ended" in done.stderr
    assert "Traceback" not in done.stderr.split("torch/distributed/elastic")[0]
    assert not (tmp_path / "out").exists()

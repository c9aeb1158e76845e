"""What both inference scripts do once they know their model: score a table, or predict images without ground truth."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sam_lora import contracts, workers
from sam_lora.model.meta import Sam
from sam_lora.model.precision import select_device
from sam_lora.results import annotate, evaluation


def infer(load_model: Callable[[], Sam], *, tuned: bool, model: str, training_folder: str | Path | None = None,
          test_csv: str | Path, image: str | Path | None, prompts: Sequence[tuple], images_dir: str | Path | None,
          prompts_csv: str | Path | None, save_yolo: bool, output_dir: str | Path, num_pictures: int,
          compare_to: str | Path | None, prompt_trials: int, seed: int, overwrite: bool, batch_size: int | None,
          num_workers: int, device: str) -> None:
    """Predict `image` from `prompts`, or `images_dir` from the table `prompts_csv`, or else score `test_csv`.

    `load_model` is called once the input and the output folder are known to be usable. `model` and `training_folder`
    are for the report. Raises UserError.
    """
    workers.keep_freed_memory()
    chosen = select_device(device)

    def load() -> Sam:
        return load_model().to(chosen)

    if image is not None:
        annotate.predict_image(load, image, prompts, output_dir, chosen, overwrite)
        return
    shared = {"batch_size": batch_size, "num_pictures": num_pictures, "num_workers": num_workers, "device": chosen,
              "seed": seed, "overwrite": overwrite}
    if images_dir is not None:
        annotate.predict_folder(load, images_dir, prompts_csv, output_dir, save_yolo=save_yolo, **shared)
        return
    prefix = contracts.TUNED_RESULTS_PREFIX if tuned else contracts.BASE_RESULTS_PREFIX
    evaluation.evaluate_table(load, test_csv, output_dir, prefix, compare_to=compare_to, tuned=tuned,
                              prompt_trials=prompt_trials, model=model, training_folder=training_folder, **shared)

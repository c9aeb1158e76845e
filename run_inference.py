"""Step 5: predict and score the test table with the fine-tuned SAM; or predict photos of your own.

Reads   test_reformatted.csv (step 3), checkpoints/sam_lora_final.ckpt (step 4), SAM's weights
Writes  finetuned_sam_results2/: report.html (everything on one page), predictions.jpg (contact sheet), samples/
        (prompt, prediction, ground truth side by side), masks/ (PNG, 0 or 255), finetuned_sam_results.csv (a row per
        sample), finetuned_sam_class_iou_summary.csv and finetuned_sam_size_iou_summary.csv. --compare_to adds
        comparison.csv, comparison.png, improved.jpg and regressed.jpg (the objects that changed most);
        --prompt_kinds adds finetuned_sam_prompt_kinds.csv, its summary and click_curve.png. Rows with an
        empty `label` get masks and pictures but no scores.

    python run_inference.py --test_csv test_reformatted.csv --compare_to base_sam_results/base_sam_results.csv
    python run_inference.py --images_dir photos --output_dir found        all objects, without a prompt
    python run_inference.py --test_csv test_reformatted.csv --find --output_dir found_scores     and how well
    torchrun --nproc_per_node 4 run_inference.py --test_csv test_reformatted.csv     four GPUs share the rows
    python run_inference.py --image photo.jpg --points "120,80 140,95"      photo_mask.png and photo_overlay.jpg
    python run_inference.py --image photo.jpg --points "120,80" --points "300,90 310,95"     two objects, two masks
    python run_inference.py --images_dir photos --prompts_csv prompts.csv --save_yolo --output_dir annotations
        masks/, overlays/, predictions.json (COCO) and yolo/, for an annotation tool
"""

import argparse
from pathlib import Path

from sam_lora import cli, contracts
from sam_lora.results import arguments


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    model = arguments.add_inference(parser, contracts.TUNED_RESULTS_FOLDER, contracts.training_table("test"))
    model.add_argument("--checkpoint", default=f"{contracts.CHECKPOINTS_FOLDER}/{contracts.FINAL_CHECKPOINT}",
                       metavar="FILE", help="fine-tuned checkpoint, written by train.py")
    model.add_argument("--base_checkpoint", metavar="FILE",
                       help="SAM weights that the checkpoint was trained on (.pth); default: located by model type, as "
                            "in train.py")
    parser.add_argument("--classes", nargs="+", metavar="NAME",
                        help="without a prompt: find these classes alone; default: all that the checkpoint knows")
    return parser


def main(args: argparse.Namespace) -> None:
    arguments.check_inference(args, get_args_parser())
    from sam_lora.model import checkpoints
    from sam_lora.model.meta import Sam
    from sam_lora.model.trained_prompts import describe, trained_kinds, untrained_note
    from sam_lora.results import inference
    from sam_lora.results.requests import Candidate

    runtime = arguments.runtime_of(args)

    def load_model(kinds: set[tuple[int, bool]]) -> Sam:
        sam, header = checkpoints.load_tuned_sam(args.checkpoint, args.base_checkpoint)
        runtime.ranks.say(f"{args.checkpoint}: {header['model_type']} at {header['image_size']} px, "
                          f"epoch {header['epoch']}, trained with {describe(trained_kinds(header))} a mask")
        if note := untrained_note(header, kinds):
            runtime.ranks.say(note)
        return sam

    candidate = Candidate(load_model, tuned=True, name=args.checkpoint, training_folder=Path(args.checkpoint).parent)
    inference.infer(candidate, arguments.request_of(args), arguments.destination_of(args), runtime)


if __name__ == "__main__":
    cli.run(main, get_args_parser())

"""Step 5, the baseline: predict and score the test table with SAM as released, before any fine-tuning.

It runs the same code as run_inference.py: only the weights differ.

Reads   test_reformatted.csv (step 3), SAM's weights
Writes  base_sam_results/: report.html (everything on one page), predictions.jpg (contact sheet), samples/
        (prompt, prediction, ground truth side by side), masks/ (PNG, 0 or 255), base_sam_results.csv (a row per
        sample), base_sam_class_iou_summary.csv and base_sam_size_iou_summary.csv. --compare_to adds
        comparison.csv, comparison.png, improved.jpg and regressed.jpg (the objects that changed most);
        --prompt_kinds adds base_sam_prompt_kinds.csv, its summary and click_curve.png. Rows with an
        empty `label` get masks and pictures but no scores.

    python run_base_sam_inference.py --test_csv test_reformatted.csv --model_type vit_b
    python run_base_sam_inference.py --test_csv test_reformatted.csv --find --output_dir found_base
        SAM's everything mode, of no class, scored like run_inference.py --find
    torchrun --nproc_per_node 4 run_base_sam_inference.py --test_csv test_reformatted.csv    four GPUs share the rows
    python run_base_sam_inference.py --image photo.jpg --box 30,40,210,180   photo_mask.png and photo_overlay.jpg
    python run_base_sam_inference.py --images_dir photos --prompts_csv prompts.csv --save_yolo --output_dir annotations
        masks/, overlays/, predictions.json (COCO) and yolo/, for an annotation tool
"""

import argparse

from sam_lora import cli, contracts
from sam_lora.results import arguments


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    model = arguments.add_inference(parser, contracts.BASE_RESULTS_FOLDER, contracts.training_table("test"))
    cli.add_model(model)
    model.add_argument("--image_size", type=cli.positive_int, metavar="PX",
                       help="side of the square that the model sees, as in train.py; default: the model's own (1024; "
                            "vit_mini 256)")
    parser.add_argument("--points_per_side", type=cli.positive_int, metavar="N",
                        help="without a prompt: side of the grid of clicks; default: 16 up to 256 px, else 32")
    return parser


def main(args: argparse.Namespace) -> None:
    arguments.check_inference(args, get_args_parser())
    from sam_lora.model.meta import Sam
    from sam_lora.model.sam import load_sam
    from sam_lora.results import inference
    from sam_lora.results.requests import Candidate

    runtime = arguments.runtime_of(args)

    def load_model(_: object) -> Sam:
        sam, _ = load_sam(args.model_type, args.checkpoint, args.image_size)
        runtime.ranks.say(f"{args.model_type} as released, at {sam.image_encoder.img_size} px")
        return sam

    candidate = Candidate(load_model, tuned=False, name=f"{args.model_type} as released")
    inference.infer(candidate, arguments.request_of(args), arguments.destination_of(args), runtime)


if __name__ == "__main__":
    cli.run(main, get_args_parser())

"""Step 5, the baseline: predict and score the test table with SAM as released, before any fine-tuning.

The same code as run_inference.py with other weights, so the two differ in nothing else.

Reads   test_reformatted.csv (step 3), SAM's weights
Writes  base_sam_results/: predictions.jpg (contact sheet), samples/ (prompt, prediction, ground truth side by side),
        masks/ (PNG, 0 or 255), base_sam_results.csv (a row per sample) and base_sam_class_iou_summary.csv (a row per
        class). A table whose column `label` is empty gives masks and pictures, no scores.

    python run_base_sam_inference.py --test_csv test_reformatted.csv --model_type vit_b
    python run_base_sam_inference.py --image photo.jpg --box 30,40,210,180   photo_mask.png and photo_overlay.jpg
"""

import argparse

from sam_lora import cli, contracts


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    model = cli.add_inference(parser, contracts.BASE_RESULTS_FOLDER, contracts.training_table("test"))
    cli.add_model(model)
    model.add_argument("--image_size", type=cli.positive_int, metavar="PX",
                       help="side of the model frame, as in train.py; default: the model's own (1024; vit_mini 256)")
    return parser


def main(args: argparse.Namespace) -> None:
    cli.check_inference(args, get_args_parser())
    from sam_lora import evaluation, sam
    device = sam.select_device(args.device)

    def load_model() -> sam.Sam:
        model, _ = sam.load_sam(args.model_type, args.checkpoint, args.image_size)
        print(f"{args.model_type} as released, at {model.image_encoder.img_size} px")
        return model.to(device)

    if args.image is not None:
        evaluation.predict_image(load_model, args.image, args.points, args.labels, args.box, args.output_dir, device,
                                 args.overwrite)
        return
    evaluation.evaluate_table(
        load_model, args.test_csv, args.output_dir, contracts.BASE_RESULTS_PREFIX, batch_size=args.batch_size,
        num_pictures=args.num_pictures, num_workers=args.num_workers, device=device, seed=args.seed,
        overwrite=args.overwrite, compare_to=args.compare_to, tuned=False)


if __name__ == "__main__":
    cli.run(main, get_args_parser())

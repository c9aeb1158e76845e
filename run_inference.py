"""Step 5: predict and score the test table with the fine-tuned SAM; or predict one image of your own.

Reads   test_reformatted.csv (step 3), checkpoints/sam_lora_final.ckpt (step 4), SAM's weights
Writes  finetuned_sam_results2/: predictions.jpg (contact sheet), samples/ (prompt, prediction, ground truth side by
        side), masks/ (PNG, 0 or 255), finetuned_sam_results.csv (a row per sample) and
        finetuned_sam_class_iou_summary.csv (a row per class); with --compare_to also comparison.csv. A table whose
        column `label` is empty gives masks and pictures, no scores.

    python run_inference.py --test_csv test_reformatted.csv --compare_to base_sam_results/base_sam_results.csv
    python run_inference.py --image photo.jpg --points "120,80 140,95"      photo_mask.png and photo_overlay.jpg
"""

import argparse

from sam_lora import cli, contracts


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    model = cli.add_inference(parser, contracts.TUNED_RESULTS_FOLDER, contracts.training_table("test"))
    model.add_argument("--checkpoint", default=f"{contracts.CHECKPOINTS_FOLDER}/{contracts.FINAL_CHECKPOINT}",
                       metavar="FILE", help="checkpoint of train.py")
    model.add_argument("--base_checkpoint", metavar="FILE",
                       help="the SAM weights it was trained on (.pth); default: found by its type, as in train.py")
    return parser


def main(args: argparse.Namespace) -> None:
    cli.check_inference(args, get_args_parser())
    from sam_lora import checkpoints, evaluation, sam
    device = sam.select_device(args.device)

    def load_model() -> sam.Sam:
        model, header = checkpoints.load_tuned_sam(args.checkpoint, args.base_checkpoint)
        print(f"{args.checkpoint}: {header['model_type']} at {header['image_size']} px, epoch {header['epoch']}, "
              f"trained with {header['prompt']} a mask")
        return model.to(device)

    if args.image is not None:
        evaluation.predict_image(load_model, args.image, args.points, args.labels, args.box, args.output_dir, device,
                                 args.overwrite)
        return
    evaluation.evaluate_table(
        load_model, args.test_csv, args.output_dir, contracts.TUNED_RESULTS_PREFIX, batch_size=args.batch_size,
        num_pictures=args.num_pictures, num_workers=args.num_workers, device=device, seed=args.seed,
        overwrite=args.overwrite, compare_to=args.compare_to, tuned=True)


if __name__ == "__main__":
    cli.run(main, get_args_parser())

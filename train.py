"""Step 4: fine-tune SAM by LoRA on your crops or whole images.

Reads   train_reformatted.csv, val_reformatted.csv (step 3) and SAM's weights
Writes  checkpoints/: sam_lora_final.ckpt (best validation epoch), last.ckpt (for --resume), the best epochs,
        training_log.csv (epoch 0 is the untuned model), training_curves.png

    python train.py --train_csv train_reformatted.csv --val_csv val_reformatted.csv --model_type vit_b
    python train.py --model_type vit_mini                 the small SAM that ships: a laptop is enough
    python train.py --model_type vit_b --resume           go on after an interruption, with the same flags
"""

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path

from sam_lora import cli, contracts
from sam_lora.errors import UserError

LORA_TARGETS = ("qkv", "proj", "lin1", "lin2")
PROMPT_SAMPLING = {"table": 0.0, "random": 1.0, "mixed": 0.5}  # share of rows that get other points in an epoch
LOSSES = ("bce_iou", "focal_dice", "bce_dice")
BY_MODEL = {  # defaults that differ: the small SAM learns faster, and fits many images in a batch
    "vit_mini": {"batch_size": 8, "learning_rate": 1e-3},
    "vit_b": {"batch_size": 4, "learning_rate": 2e-4},
    "vit_l": {"batch_size": 2, "learning_rate": 2e-4},
    "vit_h": {"batch_size": 1, "learning_rate": 1e-4},
}
IOU_LOSS_WEIGHT = 1.0          # of the IoU head's squared error, as in SAM
MAX_BAD_STEPS = 10             # non-finite steps in a row that end the run
GRADIENT_CLIP = 1.0
OWNED = ("sam-lora-epoch=*.ckpt", contracts.LAST_CHECKPOINT, contracts.FINAL_CHECKPOINT, contracts.TRAINING_LOG,
         contracts.TRAINING_CURVES)


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--train_csv", default=contracts.training_table("train"), metavar="FILE", help="table of step 3")
    data.add_argument("--val_csv", metavar="FILE",
                      help="table of step 3; default: val_reformatted.csv beside --train_csv, if it is there")
    data.add_argument("--prompts_per_image", type=cli.positive_int, default=8, metavar="N",
                      help="rows that share an image are trained together, up to this many, on one encoding of it")
    data.add_argument("--prompt_sampling", choices=PROMPT_SAMPLING, default="mixed",
                      help="table: the table's points in every epoch; random: in every epoch as many other points of "
                           "the mask; mixed: random for half of the rows. Validation always has the table's")
    data.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True,
                      help="mirror training images at random, left to right and top to bottom")
    cli.add_num_workers(data, 2)

    model = parser.add_argument_group("model")
    cli.add_model(model)
    model.add_argument("--image_size", type=cli.positive_int, metavar="PX",
                       help="side of the model frame; default: the model's own (1024; vit_mini 256). Smaller is faster")
    model.add_argument("--train_decoder", action=argparse.BooleanOptionalAction, default=True,
                       help="train the whole mask decoder beside LoRA")

    lora = parser.add_argument_group("LoRA")
    lora.add_argument("--lora_rank", type=cli.positive_int, default=16, metavar="R", help="width of the low-rank pair")
    lora.add_argument("--lora_alpha", type=cli.non_negative_float, default=32, metavar="A",
                      help="the pair's output is scaled by alpha / rank")
    lora.add_argument("--lora_dropout", type=cli.non_negative_float, default=0.0, metavar="P",
                      help="dropout before the low-rank pair")
    lora.add_argument("--lora_targets", nargs="+", choices=LORA_TARGETS, default=["qkv"], metavar="LAYER",
                      help=f"layers of each encoder block that get LoRA: {', '.join(LORA_TARGETS)}")
    lora.add_argument("--lora_blocks", type=cli.non_negative_int, metavar="N",
                      help="adapt the last N encoder blocks only; default: all; 0 leaves the encoder frozen")

    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--num_epochs", type=cli.positive_int, default=20, metavar="N",
                              help="passes over the training table")
    optimisation.add_argument("--batch_size", type=cli.positive_int, metavar="N",
                              help="images a step; default: " + _by_model("batch_size"))
    optimisation.add_argument("--grad_accum", type=cli.positive_int, default=1, metavar="N",
                              help="batches whose gradients are added up before a step: larger steps, same memory")
    optimisation.add_argument("--learning_rate", type=cli.non_negative_float, metavar="LR",
                              help="peak, after warm-up; default: " + _by_model("learning_rate"))
    optimisation.add_argument("--weight_decay", type=cli.non_negative_float, default=0.01, metavar="WD", help="AdamW's")
    optimisation.add_argument("--warmup", type=cli.non_negative_float, default=0.05, metavar="F",
                              help="share of all steps in which the learning rate rises; a cosine falls after it")
    optimisation.add_argument("--loss", choices=LOSSES, default="bce_iou",
                              help="BCE + soft IoU, SAM's 20 focal + Dice, or BCE + Dice")
    optimisation.add_argument("--multimask_weight", type=cli.non_negative_float, default=0.25, metavar="W",
                              help="weight of the best of the three ambiguity masks, which automatic mask generation "
                                   "uses; 0 leaves them behind")
    optimisation.add_argument("--patience", type=cli.positive_int, default=5, metavar="N",
                              help="stop after this many epochs without a better validation IoU")
    optimisation.add_argument("--stop_after_epoch", type=cli.positive_int, metavar="N",
                              help="end this run after epoch N of --num_epochs, to go on with --resume later")
    cli.add_seed(optimisation)

    hardware = parser.add_argument_group("hardware")
    cli.add_device(hardware)
    hardware.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                          help="auto: bf16 on a GPU that has it, fp16 on one that has not, fp32 on the CPU")
    hardware.add_argument("--grad_checkpoint", action="store_true",
                          help="recompute encoder blocks in the backward pass: less memory, more time")
    hardware.add_argument("--compile", action="store_true", help="torch.compile the image encoder")

    output = parser.add_argument_group("output")
    output.add_argument("--save_dir", default=contracts.CHECKPOINTS_FOLDER, metavar="DIR", help="checkpoints go here")
    output.add_argument("--save_top_k", type=cli.non_negative_int, default=3, metavar="K",
                        help="keep the checkpoints of the K best epochs")
    output.add_argument("--resume", action="store_true", help="go on from last.ckpt in --save_dir")
    cli.add_overwrite(output)
    return parser


def _by_model(name: str) -> str:
    return ", ".join(f"{defaults[name]:g} for {model}" for model, defaults in BY_MODEL.items())


def main(args: argparse.Namespace) -> None:
    save_dir = Path(args.save_dir)
    if args.resume and args.overwrite:
        get_args_parser().error("--resume goes on with a run and --overwrite throws it away: give one of them")
    if args.lora_blocks == 0 and not args.train_decoder:
        get_args_parser().error("--lora_blocks 0 with --no-train_decoder leaves nothing to train")
    for name, value in BY_MODEL[args.model_type].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    existing = [] if not save_dir.is_dir() else [path for pattern in OWNED for path in save_dir.glob(pattern)]
    if existing and not (args.resume or args.overwrite):
        raise UserError(f"{save_dir}: holds an earlier run ({existing[0].name}); give --resume to go on with it, "
                        "--overwrite to replace it, or another --save_dir")
    if args.resume and not (save_dir / contracts.LAST_CHECKPOINT).is_file():
        raise UserError(f"{save_dir / contracts.LAST_CHECKPOINT}: no such file, so nothing to go on with; "
                        "run without --resume")
    try:
        train(args, save_dir, existing)
    except KeyboardInterrupt:
        if (save_dir / contracts.LAST_CHECKPOINT).is_file():
            print(f"\nthe last finished epoch is in {save_dir / contracts.LAST_CHECKPOINT}; go on with --resume",
                  file=sys.stderr)
        raise


def train(args: argparse.Namespace, save_dir: Path, existing: list[Path]) -> None:
    import pandas as pd
    import torch

    from sam_lora import checkpoints, dataset, figures, metrics, workers
    from sam_lora import sam as sam_module
    from sam_lora.evaluation import predict
    from sam_lora.lora import trainable_parameters
    from sam_lora.losses import MASK_LOSSES

    # ---- data: everything that can be wrong with the tables is said before the model is built
    train_samples = dataset.read_samples(args.train_csv)
    dataset.check_samples(train_samples, args.train_csv, need_labels=True)
    val_csv = find_val_csv(args)
    val_samples = []
    if val_csv:
        val_samples = dataset.read_samples(val_csv)
        dataset.check_samples(val_samples, val_csv, need_labels=True)

    # ---- model
    workers.keep_freed_memory()
    torch.manual_seed(args.seed)  # LoRA's A is drawn from torch's global generator
    device = sam_module.select_device(args.device)
    autocast, scaler, precision = select_precision(args.precision, device)
    sam, base_sha256 = sam_module.load_sam(args.model_type, args.checkpoint, args.image_size)
    image_size = sam.image_encoder.img_size
    lora = {"rank": args.lora_rank, "alpha": args.lora_alpha, "dropout": args.lora_dropout,
            "targets": sorted(set(args.lora_targets)), "blocks": args.lora_blocks}
    adapted = checkpoints.prepare_for_training(sam, lora, args.train_decoder)
    if args.grad_checkpoint:
        sam_module.checkpoint_blocks(sam)
    sam.to(device)
    if args.compile:
        sam.image_encoder.compile()
    trainable = trainable_parameters(sam)
    count, total = (sum(p.numel() for p in ps) for ps in (trainable.values(), sam.parameters()))
    print(f"{args.model_type} at {image_size} px on {device} in {precision}: LoRA on {len(adapted)} layers, "
          f"{count:,} of {total:,} parameters train ({count / total:.1%})")
    print(f"{len(train_samples)} training rows, {len(val_samples)} validation rows"
          + ("" if val_samples else ": without validation, the last epoch is the final one"))

    pin = device.type == "cuda"
    shuffle, augmentation = torch.Generator(), torch.Generator()
    train_set = dataset.PromptedImages(train_samples, image_size, args.prompts_per_image, True, False)
    train_loader = dataset.make_loader(train_set, image_size, args.batch_size, args.num_workers, pin, shuffle)
    val_loader = None
    if val_samples:
        val_set = dataset.PromptedImages(val_samples, image_size, args.prompts_per_image, True, True)
        val_loader = dataset.make_loader(val_set, image_size, args.batch_size, args.num_workers, pin)

    optimizer = torch.optim.AdamW(trainable.values(), lr=args.learning_rate, weight_decay=args.weight_decay,
                                  fused=device.type in ("cpu", "cuda"))
    steps_per_epoch = math.ceil(len(train_loader) / args.grad_accum)
    mask_loss = MASK_LOSSES[args.loss]
    header = {"model_type": args.model_type, "image_size": image_size, "base_sha256": base_sha256, "lora": lora,
              "train_decoder": args.train_decoder, "prompt": prompt_kind(train_samples), "epoch": 0, "metrics": {},
              "args": dict(vars(args)),
              "versions": checkpoints.library_versions()}
    run = {"epoch": 0, "step": 0, "log": [], "top": [], "best_epoch": 0, "best_iou": -1.0, "best_state": {}}
    if args.resume:
        run = resume(save_dir / contracts.LAST_CHECKPOINT, header, sam, optimizer, scaler)
        print(f"resumed after epoch {run['epoch']}")

    def validate() -> tuple[float, float]:
        """(mean loss, mean IoU at full resolution) on the validation table; NaN without one."""
        if val_loader is None:
            return math.nan, math.nan
        sam.eval()
        predictions = predict(sam, dataset.batches(val_loader), device, autocast, mask_loss)
        scores = [(found.loss, metrics.iou(found.mask, found.truth))
                  for found in progress(predictions, "validation", len(val_samples), "mask")]
        return tuple(sum(column) / len(scores) for column in zip(*scores))

    def write_log() -> None:
        log = pd.DataFrame(run["log"])
        contracts.write_table(log, save_dir / contracts.TRAINING_LOG)
        figures.training_curves(log, save_dir / contracts.TRAINING_CURVES)

    if run["epoch"] == 0 and not run["log"]:
        started = time.perf_counter()
        val_loss, val_iou = validate()
        save_dir.mkdir(parents=True, exist_ok=True)
        for path in existing:  # --overwrite: the earlier run goes once the new one is known to work
            path.unlink()
        run["log"].append(log_row(0, val_loss=val_loss, val_iou=val_iou, seconds=time.perf_counter() - started))
        write_log()
        if val_samples:
            print(f"epoch 0 (untuned): validation IoU {val_iou:.4f}")

    # ---- the loop
    last_epoch = min(args.num_epochs, args.stop_after_epoch or args.num_epochs)
    for epoch in range(run["epoch"] + 1, last_epoch + 1):
        started = time.perf_counter()
        # every epoch starts its generators from (seed, epoch), so a resumed run draws what an unbroken one would
        shuffle.manual_seed(args.seed * 1_000_003 + epoch)
        augmentation.manual_seed(args.seed * 1_000_003 + epoch)
        draws = dataset.augmentation_draws(train_samples, augmentation)
        torch.manual_seed(args.seed * 1_000_003 + epoch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        sam.train()
        bar = progress(dataset.batches(train_loader), f"epoch {epoch}/{args.num_epochs}", len(train_loader), "batch")
        figures_of_epoch = train_one_epoch(
            sam, bar, len(train_loader), optimizer, scaler, autocast, device, args, mask_loss, draws,
            first_step=run["step"], total_steps=args.num_epochs * steps_per_epoch)
        run["step"] += steps_per_epoch
        training_seconds = time.perf_counter() - started
        val_loss, val_iou = validate()
        run["epoch"] = epoch
        run["log"].append(log_row(
            epoch, **figures_of_epoch, val_loss=val_loss, val_iou=val_iou, seconds=time.perf_counter() - started,
            images_per_s=len(train_set) / training_seconds, peak_memory_mb=peak_memory_mb(device)))

        # ---- keep: the best k, the last, the log. The state is copied once and shared by the files
        state = checkpoints.trained_state(sam)
        header |= {"epoch": epoch, "metrics": {"val_iou": val_iou, "train_iou": figures_of_epoch["train_iou"],
                                               "untuned_val_iou": run["log"][0]["val_iou"]}}
        improved = not val_samples or val_iou > run["best_iou"]
        if improved:
            run |= {"best_epoch": epoch, "best_iou": val_iou if val_samples else -1.0, "best_state": state,
                    "best_metrics": header["metrics"]}
        if val_samples and args.save_top_k:
            keep_top(run["top"], args.save_top_k, save_dir, header, state)
        checkpoints.save_checkpoint(save_dir / contracts.LAST_CHECKPOINT, header, state, training={
            **run, "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
            "random_state": torch.get_rng_state()})
        write_log()
        row = run["log"][-1]
        print(f"epoch {epoch}: loss {row['train_loss']:.4f}, train IoU {row['train_iou']:.4f}"
              + (f", validation IoU {val_iou:.4f}{' (best)' if improved else ''}" if val_samples else "")
              + f", {row['seconds']:.0f} s")
        if val_samples and epoch - run["best_epoch"] >= args.patience:
            print(f"no better validation IoU for {args.patience} epochs: stopped")
            break
    else:
        if last_epoch < args.num_epochs:
            print(f"stopped after epoch {last_epoch} of {args.num_epochs} as asked; go on with --resume")
            return

    header |= {"epoch": run["best_epoch"], "metrics": run["best_metrics"]}
    final = save_dir / contracts.FINAL_CHECKPOINT
    checkpoints.save_checkpoint(final, header, run["best_state"])
    print(f"{final}: the weights of epoch {run['best_epoch']}, {final.stat().st_size / 1e6:.1f} MB")
    if val_samples:
        untuned = run["log"][0]["val_iou"]
        print(f"validation IoU {untuned:.4f} untuned, {run['best_iou']:.4f} tuned"
              + ("" if run["best_iou"] > untuned else ": fine-tuning did NOT help; see the README's troubleshooting"))


def train_one_epoch(sam, batches, num_batches: int, optimizer, scaler, autocast, device, args: argparse.Namespace,
                    mask_loss, draws, first_step: int, total_steps: int) -> dict[str, float]:
    """One pass over the training table; returns the epoch's mean losses and IoU, weighted by masks.

    `draws` are the epoch's random numbers for mirroring and new points, from `dataset.augmentation_draws`.
    """
    import torch

    from sam_lora import dataset
    from sam_lora.lora import check_gradients, trainable_parameters
    parameters = list(trainable_parameters(sam).values())
    sums = {"train_loss": 0.0, "train_iou": 0.0}
    masks_seen = skipped = bad_in_a_row = 0
    step = first_step
    optimizer.zero_grad(set_to_none=True)
    try:
        for number, batch in enumerate(batches):
            batch = batch.to(device)
            if args.flip:
                batch = dataset.mirror(batch, draws)
            if share := PROMPT_SAMPLING[args.prompt_sampling]:
                batch = dataset.draw_points_anew(batch, draws, share)
            window = min(args.grad_accum, num_batches - number // args.grad_accum * args.grad_accum)
            with autocast:
                loss, iou = batch_loss(sam, batch, mask_loss, args.multimask_weight)
            if torch.isfinite(loss):
                scaler.scale(loss / window).backward()
                sums["train_loss"] += loss.item() * len(batch.rows)
                sums["train_iou"] += iou.item() * len(batch.rows)
                masks_seen += len(batch.rows)
            if (number + 1) % args.grad_accum and number + 1 < num_batches:
                continue
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * schedule(step, total_steps, args.warmup)
            finite = any(parameter.grad is not None for parameter in parameters)
            if finite:
                scaler.unscale_(optimizer)
                if step == 0 and not scaler.is_enabled():
                    check_gradients(sam)
                finite = bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)))
                if finite:
                    scaler.step(optimizer)
                    bad_in_a_row = 0
                scaler.update()
            if not finite:
                skipped += 1
                bad_in_a_row += 1
                if bad_in_a_row == MAX_BAD_STEPS:
                    raise UserError(f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite; "
                                    "try --precision fp32, a smaller --learning_rate, and look at the masks")
            optimizer.zero_grad(set_to_none=True)
            step += 1
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory at batch_size {args.batch_size}; try in this order: --grad_checkpoint, "
                        f"--batch_size {max(1, args.batch_size // 2)} --grad_accum {args.grad_accum * 2}, "
                        "--image_size 512, --lora_blocks 4") from error
    means = {name: value / max(1, masks_seen) for name, value in sums.items()}
    return {**means, "learning_rate": optimizer.param_groups[0]["lr"], "skipped_steps": skipped}


def batch_loss(sam, batch, mask_loss, multimask_weight: float):
    """(loss to minimise, mean IoU of the single masks) of a batch on the device.

    The single mask, which is what prompts of several points or a box get, is compared in the model frame; of the three
    ambiguity masks the best one is, at their own low resolution. The IoU head learns the true IoU of all four.
    """
    import torch
    from torch.nn import functional as F

    from sam_lora.losses import frame_iou
    from sam_lora.sam import decode_all, frame_mask, preprocess, upscale_to_frame
    side = batch.images.shape[-1]
    embeddings = sam.image_encoder(preprocess(batch.images, batch.input_sizes, sam))        # (B, C, h, w)
    masks, predicted_iou = decode_all(sam, embeddings[batch.image_index], batch.prompts)    # (N, 4, 4h, 4w), (N, 4)
    masks, predicted_iou = masks.float(), predicted_iou.float()
    with torch.autocast(batch.images.device.type, enabled=False):
        target = batch.targets.float() / 255                                               # (N, S, S)
        valid = frame_mask(batch.input_sizes, side)[batch.image_index, 0].float()
        single = upscale_to_frame(masks[:, :1], side)[:, 0]
        iou = frame_iou(single, target, valid)
        loss = mask_loss(single, target, valid) + IOU_LOSS_WEIGHT * (predicted_iou[:, 0] - iou) ** 2
        if multimask_weight:
            small = [F.interpolate(x[:, None], masks.shape[-2:], mode="area").expand(-1, 3, -1, -1).flatten(0, 1)
                     for x in (target, valid)]
            three = masks[:, 1:].flatten(0, 1)                                             # (3N, 4h, 4w)
            best = mask_loss(three, *small).unflatten(0, (-1, 3)).min(dim=1).values
            iou_error = (predicted_iou[:, 1:] - frame_iou(three, *small).unflatten(0, (-1, 3))) ** 2
            loss = loss + multimask_weight * (best + IOU_LOSS_WEIGHT * iou_error.mean(dim=1))
    return loss.mean(), iou.mean()


def schedule(step: int, total_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: a line up over the first `warmup` of all steps, then half a cosine."""
    rise = max(1, round(total_steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total_steps - rise))))


def select_precision(name: str, device):
    """(autocast context, gradient scaler, name). auto: bf16 where the GPU has it, else fp16; fp32 on the CPU."""
    import torch
    if name == "auto":
        name = "fp32"
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; on the CPU give fp32 or bf16")
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    autocast = torch.autocast(device.type, dtype=types[name]) if name in types else contextlib.nullcontext()
    return autocast, torch.amp.GradScaler(device.type, enabled=name == "fp16"), name


def find_val_csv(args: argparse.Namespace) -> str | None:
    if args.val_csv:
        return args.val_csv
    beside = Path(args.train_csv).parent / contracts.training_table("val")
    return str(beside) if beside.is_file() else None


def prompt_kind(samples) -> str:
    """What the model is trained to be prompted with, for the checkpoint's header: "3 points", "box", …"""
    counts = sorted({len(sample.points) for sample in samples})
    points = "" if counts == [0] else f"{counts[0]} points" if len(counts) == 1 else f"{counts[0]}-{counts[-1]} points"
    return " and ".join(part for part in (points, "box" if any(sample.box for sample in samples) else "") if part)


def resume(path: Path, header: dict, sam, optimizer, scaler) -> dict:
    """Put the state of an earlier run back; returns what the loop needs. UserError if it was another kind of run."""
    from sam_lora import checkpoints
    content = checkpoints.load_checkpoint(path)
    training = content.get("training")
    if not isinstance(training, dict):
        raise UserError(f"{path}: holds no training state; --resume needs the last.ckpt of train.py")
    for name in ("model_type", "image_size", "base_sha256", "lora", "train_decoder"):
        if content["header"][name] != header[name]:
            raise UserError(f"{path}: was trained with {name} {content['header'][name]}, this run has {header[name]}; "
                            "resume with the same flags, or start anew in another --save_dir")
    checkpoints.load_trained_state(sam, content["state"], path)
    try:
        optimizer.load_state_dict(training.pop("optimizer"))
        scaler.load_state_dict(training.pop("scaler"))
        training.pop("random_state")  # each epoch starts its generators anew; kept for those who look
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its training state does not fit ({error}); "
                        "start anew in another --save_dir") from error
    return training


def keep_top(top: list, k: int, save_dir: Path, header: dict, state: dict) -> None:
    """Write this epoch's checkpoint if it is among the k best, drop the one it displaces. `top`: [[iou, epoch], …]."""
    from sam_lora import checkpoints
    val_iou, epoch = header["metrics"]["val_iou"], header["epoch"]
    ranked = sorted([*top, [val_iou, epoch]], key=lambda entry: (-entry[0], entry[1]))
    if [val_iou, epoch] in ranked[:k]:
        checkpoints.save_checkpoint(save_dir / contracts.epoch_checkpoint(epoch, val_iou), header, state)
    for old_iou, old_epoch in ranked[k:]:
        (save_dir / contracts.epoch_checkpoint(old_epoch, old_iou)).unlink(missing_ok=True)
    top[:] = ranked[:k]


def log_row(epoch: int, train_loss: float = math.nan, train_iou: float = math.nan, val_loss: float = math.nan,
            val_iou: float = math.nan, learning_rate: float = math.nan, seconds: float = math.nan,
            images_per_s: float = math.nan, peak_memory_mb: float = math.nan, skipped_steps: int = 0) -> dict:
    """One row of training_log.csv."""
    return {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss, "train_iou": train_iou, "val_iou": val_iou,
            "learning_rate": learning_rate, "seconds": round(seconds, 2), "images_per_s": round(images_per_s, 2),
            "peak_memory_mb": round(peak_memory_mb, 1), "skipped_steps": skipped_steps}


def peak_memory_mb(device) -> float:
    """The most memory in use so far: of the epoch on a GPU, of the process on the CPU."""
    import torch
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def progress(iterable, description: str, total: int, unit: str):
    from tqdm import tqdm
    return tqdm(iterable, desc=description, total=total, unit=unit, leave=False, disable=None)


if __name__ == "__main__":
    cli.run(main, get_args_parser())

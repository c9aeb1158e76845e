"""Step 4: fine-tune SAM by LoRA on your crops or whole images.

Reads   train_reformatted.csv, val_reformatted.csv (step 3) and SAM's weights
Writes  checkpoints/: sam_lora_final.ckpt (best validation epoch), last.ckpt (for --resume), the best epochs,
        training_log.csv (epoch 0 is the untuned model), training_curves.png

    python train.py --train_csv train_reformatted.csv --val_csv val_reformatted.csv --model_type vit_b
    python train.py --model_type vit_mini                 the small SAM that ships: a laptop is enough
    python train.py --model_type vit_b --resume           go on after an interruption, with the same flags
    torchrun --nproc_per_node 4 train.py --model_type vit_b      four GPUs; --batch_size is that of each
"""

import argparse
import contextlib
import hashlib
import math
import sys
import time
from pathlib import Path

from sam_lora import cli, contracts
from sam_lora.errors import UserError
from sam_lora.tables import write_table

LORA_TARGETS = ("qkv", "proj", "lin1", "lin2")
PROMPT_SAMPLING = {"table": 0.0, "random": 1.0, "mixed": 0.5}  # share of rows that get other points in an epoch
PIXEL_AUGMENTATION = {"flip": (True, False), "color_jitter": (0.0, 0.0)}  # default without and with kept features
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
    data.add_argument("--flip", action=argparse.BooleanOptionalAction,
                      help="mirror training images at random, left to right and top to bottom; default: on, unless "
                           "--feature_cache is")
    data.add_argument("--color_jitter", type=cli.share, metavar="F",
                      help="change brightness, contrast and saturation of training images by up to this share; "
                           "default: 0")
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
    lora.add_argument("--rslora", action="store_true", help="scale by alpha / sqrt(rank): for large ranks")
    lora.add_argument("--dora", action="store_true",
                      help="DoRA: train the length of each output's weights beside their direction; slower")

    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--num_epochs", type=cli.positive_int, default=20, metavar="N",
                              help="passes over the training table")
    optimisation.add_argument("--batch_size", type=cli.positive_int, metavar="N",
                              help="images a step (of each process under torchrun); default: "
                                   + _by_model("batch_size"))
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
    optimisation.add_argument("--ema", type=cli.share, default=0.0, metavar="D",
                              help="validate and keep a moving average of the weights: 0.99 averages about the last "
                                   "100 steps; 0: the weights themselves")
    optimisation.add_argument("--patience", type=cli.positive_int, default=5, metavar="N",
                              help="stop after this many epochs without a better validation IoU")
    optimisation.add_argument("--stop_after_epoch", type=cli.positive_int, metavar="N",
                              help="end this run after epoch N of --num_epochs, to go on with --resume later")
    cli.add_seed(optimisation)

    hardware = parser.add_argument_group("hardware")
    cli.add_device(hardware)
    hardware.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                          help="auto: bf16 on a GPU that has it, fp16 on one that has not; on a CPU fp32, or bf16 if "
                               "it has instructions for it and measures faster")
    hardware.add_argument("--grad_checkpoint", action="store_true",
                          help="recompute encoder blocks in the backward pass: less memory, more time")
    hardware.add_argument("--compile", action="store_true", help="torch.compile the image encoder")

    cache = parser.add_argument_group("frozen work, done once")
    cache.add_argument("--feature_cache", action=argparse.BooleanOptionalAction,
                       help="keep what the frozen encoder blocks make of each image, so that only the first epoch pays "
                            "for them; default: on where --lora_blocks leaves frozen blocks and --flip was not given")
    cache.add_argument("--cache_ram_gb", type=cli.non_negative_float, default=4, metavar="GB",
                       help="keep up to so much of it in memory too")
    cache.add_argument("--cache_dir", metavar="DIR",
                       help="keep it in this folder, for later runs too; it may be deleted at any time; default: "
                            f"{contracts.FEATURE_CACHE_FOLDER} in --save_dir")
    cache.add_argument("--cache_precision", choices=("fp32", "fp16", "bf16"), default="fp32",
                       help="numbers it is kept in: fp32 is exact, the others take half the room")

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
    if args.feature_cache and (changing := pixel_augmentation(args)):
        get_args_parser().error(f"--feature_cache keeps the features of unchanged images and {changing[0]} changes "
                                "them in every epoch: give one of them")
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
    import torch

    from sam_lora.model.precision import select_device
    from sam_lora.training import distributed
    ranks = distributed.ranks_of_environment()
    device = select_device(distributed.own_device(args.device, ranks))
    try:
        with distributed.joined(ranks, device):
            train(args, save_dir, existing, ranks, device)
    except torch.cuda.OutOfMemoryError as error:
        card = torch.cuda.get_device_properties(device)
        raise UserError(out_of_memory(args, torch.cuda.max_memory_allocated(device), card.total_memory)) from error
    except KeyboardInterrupt:
        if ranks.first and (save_dir / contracts.LAST_CHECKPOINT).is_file():
            print(f"\nthe last finished epoch is in {save_dir / contracts.LAST_CHECKPOINT}; go on with --resume",
                  file=sys.stderr)
        raise


def pixel_augmentation(args: argparse.Namespace) -> list[str]:
    """The flags asked for that change the images' pixels."""
    return [f"--{name}" for name in PIXEL_AUGMENTATION if getattr(args, name)]


def settle_feature_cache(args: argparse.Namespace, depth: int) -> None:
    """Fill in what was left open: are features kept, and what augmentation goes with that. `depth`: encoder blocks."""
    if args.feature_cache is None:
        leaves_frozen = args.lora_blocks is not None and args.lora_blocks < depth
        args.feature_cache = leaves_frozen and not pixel_augmentation(args)
    for name, defaults in PIXEL_AUGMENTATION.items():
        if getattr(args, name) is None:
            setattr(args, name, defaults[args.feature_cache])


def train(args: argparse.Namespace, save_dir: Path, existing: list[Path], ranks, device) -> None:
    import pandas as pd
    import torch

    from sam_lora import figures, workers
    from sam_lora.data.samples import check_samples, read_samples
    from sam_lora.model import checkpoints
    from sam_lora.model.augment import augmentation_draws
    from sam_lora.model.batches import PromptedImages, batches, make_loader
    from sam_lora.model.lora import trainable_parameters
    from sam_lora.model.sam import checkpoint_blocks, load_sam
    from sam_lora.results import metrics
    from sam_lora.results.evaluation import predict
    from sam_lora.training import distributed
    from sam_lora.training.ema import WeightAverage
    from sam_lora.training.feature_cache import FeatureCache
    from sam_lora.training.losses import MASK_LOSSES

    def say(text: str) -> None:
        if ranks.first:
            print(text)

    # ---- data: everything that can be wrong with the tables is said before the model is built
    val_csv = find_val_csv(args)
    val_samples = []
    with distributed.one_first(ranks):
        train_samples = read_samples(args.train_csv)
        check_samples(train_samples, args.train_csv, need_labels=True)
        if val_csv:
            val_samples = read_samples(val_csv)
            check_samples(val_samples, val_csv, need_labels=True)
    distributed.check_agreement(ranks, run_digest(args, val_csv), "the flags or tables")

    # ---- model
    workers.keep_freed_memory()
    torch.manual_seed(args.seed)  # LoRA's A is drawn from torch's global generator
    with distributed.one_first(ranks):  # one downloads, the others find the file
        sam, base_sha256 = load_sam(args.model_type, args.checkpoint, args.image_size)
    image_size = sam.image_encoder.img_size
    autocast, scaler, precision = select_precision(args.precision, device, sam, ranks)
    lora = {"rank": args.lora_rank, "alpha": args.lora_alpha, "dropout": args.lora_dropout,
            "targets": sorted(set(args.lora_targets)), "blocks": args.lora_blocks, "rslora": args.rslora,
            "dora": args.dora}
    adapted = checkpoints.prepare_for_training(sam, lora, args.train_decoder)
    if args.grad_checkpoint:
        checkpoint_blocks(sam)
    sam.to(device)
    depth = len(sam.image_encoder.blocks)
    trained_blocks = depth if args.lora_blocks is None else args.lora_blocks
    settle_feature_cache(args, depth)
    if args.compile and args.feature_cache:  # the frozen part runs once, the rest block by block
        for block in sam.image_encoder.blocks[depth - trained_blocks:]:
            block.compile()
    elif args.compile:
        sam.image_encoder.compile()
    trainable = trainable_parameters(sam)
    count, total = (sum(p.numel() for p in ps) for ps in (trainable.values(), sam.parameters()))
    say(f"{args.model_type} at {image_size} px on {device} in {precision}: LoRA on {len(adapted)} layers, "
        f"{count:,} of {total:,} parameters train ({count / total:.1%})"
        + (f"; {ranks.world_size} processes" if ranks.world_size > 1 else ""))
    say(f"{len(train_samples)} training rows, {len(val_samples)} validation rows"
        + ("" if val_samples else ": without validation, the last epoch is the final one"))

    pin = device.type == "cuda"
    shuffle, augmentation = torch.Generator(), torch.Generator()
    train_set = PromptedImages(train_samples, image_size, args.prompts_per_image, True, False)
    train_loader = make_loader(train_set, image_size, args.batch_size, args.num_workers, pin, shuffle,
                                       ranks.rank, ranks.world_size)
    val_set = val_loader = None
    if val_samples:
        val_set = PromptedImages(val_samples, image_size, args.prompts_per_image, True, True)
        val_loader = make_loader(val_set, image_size, args.batch_size, args.num_workers, pin,
                                         rank=ranks.rank, world_size=ranks.world_size)

    optimizer = torch.optim.AdamW(trainable.values(), lr=args.learning_rate, weight_decay=args.weight_decay,
                                  fused=device.type in ("cpu", "cuda"))
    average = WeightAverage(trainable, args.ema) if args.ema else None
    steps_per_epoch = math.ceil(len(train_loader) / args.grad_accum)
    mask_loss = MASK_LOSSES[args.loss]
    loss_of = distributed.replicate(
        lambda model, batch: batch_loss(model, batch, mask_loss, args.multimask_weight), sam, ranks, device)
    header = {"model_type": args.model_type, "image_size": image_size, "base_sha256": base_sha256, "lora": lora,
              "train_decoder": args.train_decoder, "prompt": prompt_kind(train_samples), "epoch": 0, "metrics": {},
              "args": dict(vars(args)),
              "versions": checkpoints.library_versions()}
    run = {"epoch": 0, "log": [], "top": [], "best_epoch": 0, "best_iou": -1.0, "best_state": {}}
    if args.resume:
        run = resume(save_dir / contracts.LAST_CHECKPOINT, header, sam, optimizer, scaler, average)
        say(f"resumed after epoch {run['epoch']}")

    # ---- frozen work is done once: what the frozen blocks make of each image
    features = None
    if args.feature_cache:
        started = time.perf_counter()
        folder = Path(args.cache_dir) if args.cache_dir else save_dir / contracts.FEATURE_CACHE_FOLDER
        features = FeatureCache(sam, trained_blocks, base_sha256, device=device, autocast=autocast, precision=precision,
                                stored_as=args.cache_precision, ram_bytes=int(args.cache_ram_gb * 1e9), folder=folder)
        images = {sample.image for sample in (*train_samples, *val_samples)}
        if ranks.world_size > 1:  # each encodes its share, then finds the others' in the folder
            features.fill(sorted(images)[ranks.rank::ranks.world_size], args.batch_size)
            distributed.add_up([0], ranks)
        features.fill(sorted(images), args.batch_size)
        train_set.sizes = features.sizes(images)
        if val_set:
            val_set.sizes = train_set.sizes
        say("\n".join([f"features of {len(images)} images: {features.encoded} computed in "
                       f"{time.perf_counter() - started:.0f} s, kept in {folder}; so images are not mirrored or "
                       "changed in colour (--flip, --color_jitter do that instead)", *features.take_notes()]))

    def load(loader):
        """The loader's batches, with features instead of images where those are kept."""
        found = batches(loader)
        return features.attach(found) if features else found

    def validate() -> tuple[float, float]:
        """(mean loss, mean IoU at full resolution) on the validation table; NaN without one."""
        if val_loader is None:
            return math.nan, math.nan
        sam.eval()
        scores = torch.zeros(len(val_samples), 2, dtype=torch.float64)  # each process fills in its own rows
        predictions = predict(sam, load(val_loader), device, autocast, mask_loss)
        for found in progress(predictions, "validation", len(val_samples) // ranks.world_size, "mask", ranks.first):
            scores[found.row] = torch.tensor([found.loss, metrics.iou(found.mask, found.truth)])
        loss, iou = (distributed.add_up(scores.flatten(), ranks).reshape(-1, 2).sum(dim=0) / len(scores)).tolist()
        return loss, iou

    def write_log() -> None:
        if not ranks.first:
            return
        log = pd.DataFrame(run["log"])
        write_table(log, save_dir / contracts.TRAINING_LOG)
        figures.training_curves(log, save_dir / contracts.TRAINING_CURVES)

    if run["epoch"] == 0 and not run["log"]:
        started = time.perf_counter()
        val_loss, val_iou = validate()
        if ranks.first:
            save_dir.mkdir(parents=True, exist_ok=True)
            for path in existing:  # --overwrite: the earlier run goes once the new one is known to work
                path.unlink(missing_ok=True)
        run["log"].append(log_row(0, val_loss=val_loss, val_iou=val_iou, seconds=time.perf_counter() - started))
        write_log()
        if val_samples:
            say(f"epoch 0 (untuned): validation IoU {val_iou:.4f}")

    # ---- the loop
    bad_in_a_row = 0  # steps
    last_epoch = min(args.num_epochs, args.stop_after_epoch or args.num_epochs)
    for epoch in range(run["epoch"] + 1, last_epoch + 1):
        started = time.perf_counter()
        # every epoch starts its generators from (seed, epoch), so a resumed run draws what an unbroken one would
        shuffle.manual_seed(args.seed * 1_000_003 + epoch)
        augmentation.manual_seed(args.seed * 1_000_003 + epoch)
        draws = augmentation_draws(train_samples, augmentation)
        torch.manual_seed((args.seed * 1_000_003 + epoch) * ranks.world_size + ranks.rank)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        sam.train()
        bar = progress(load(train_loader), f"epoch {epoch}/{args.num_epochs}", len(train_loader), "batch",
                       ranks.first)
        figures_of_epoch = train_one_epoch(
            sam, loss_of, bar, train_loader.batch_sampler, optimizer, scaler, average, autocast, device, args, draws,
            ranks, first_step=(epoch - 1) * steps_per_epoch, total_steps=args.num_epochs * steps_per_epoch,
            bad_in_a_row=bad_in_a_row)
        bad_in_a_row = figures_of_epoch.pop("bad_in_a_row")
        training_seconds = time.perf_counter() - started
        with average.applied() if average else contextlib.nullcontext():
            val_loss, val_iou = validate()
            state = checkpoints.trained_state(sam)  # one copy, which the files share
        run["epoch"] = epoch
        run["log"].append(log_row(
            epoch, **figures_of_epoch, val_loss=val_loss, val_iou=val_iou, seconds=time.perf_counter() - started,
            images_per_s=len(train_set) / training_seconds, peak_memory_mb=peak_memory_mb(device)))

        # ---- keep: the best k, the last, the log
        header |= {"epoch": epoch, "metrics": {"val_iou": val_iou, "train_iou": figures_of_epoch["train_iou"],
                                               "untuned_val_iou": run["log"][0]["val_iou"]}}
        improved = not val_samples or val_iou > run["best_iou"]
        if improved:
            run |= {"best_epoch": epoch, "best_iou": val_iou if val_samples else -1.0, "best_state": state,
                    "best_metrics": header["metrics"]}
        if val_samples and args.save_top_k and ranks.first:
            keep_top(run["top"], args.save_top_k, save_dir, header, state)
        if ranks.first:
            checkpoints.save_checkpoint(save_dir / contracts.LAST_CHECKPOINT, header, state, training={
                **run, "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                "random_state": torch.get_rng_state(),
                **({"average": average.state(), "weights": checkpoints.trained_state(sam)} if average else {})})
        write_log()
        for note in features.take_notes() if features else ():
            say(note)
        row = run["log"][-1]
        say(f"epoch {epoch}: loss {row['train_loss']:.4f}, train IoU {row['train_iou']:.4f}"
            + (f", validation IoU {val_iou:.4f}{' (best)' if improved else ''}" if val_samples else "")
            + f", {row['seconds']:.0f} s")
        if val_samples and epoch - run["best_epoch"] >= args.patience:
            say(f"no better validation IoU for {args.patience} epochs: stopped")
            break
    else:
        if last_epoch < args.num_epochs:
            say(f"stopped after epoch {last_epoch} of {args.num_epochs} as asked; go on with --resume")
            return

    if not ranks.first:
        return
    header |= {"epoch": run["best_epoch"], "metrics": run["best_metrics"]}
    final = save_dir / contracts.FINAL_CHECKPOINT
    checkpoints.save_checkpoint(final, header, run["best_state"])
    print(f"{final}: the weights of epoch {run['best_epoch']}, {final.stat().st_size / 1e6:.1f} MB")
    if val_samples:
        untuned = run["log"][0]["val_iou"]
        print(f"validation IoU {untuned:.4f} untuned, {run['best_iou']:.4f} tuned"
              + ("" if run["best_iou"] > untuned else ": fine-tuning did NOT help; see the README's troubleshooting"))


def train_one_epoch(sam, loss_of, batches, share, optimizer, scaler, average, autocast, device,
                    args: argparse.Namespace, draws, ranks, first_step: int, total_steps: int,
                    bad_in_a_row: int) -> dict[str, float]:
    """One pass over the training table; returns the epoch's mean losses and IoU, weighted by masks, over all processes.

    `loss_of` gives `batch_loss` of a batch. `share` is the loader's batch sampler. `draws` are the epoch's random
    numbers for augmentation, from `dataset.augmentation_draws`.
    """
    import torch

    from sam_lora.model.augment import draw_points_anew, jitter_colours, mirror
    from sam_lora.model.lora import check_gradients, trainable_parameters
    from sam_lora.training import distributed
    parameters = list(trainable_parameters(sam).values())
    started = time.perf_counter()
    sums = torch.zeros(3, dtype=torch.float64)  # loss and IoU, each times masks; masks
    waited, skipped, step, finite = [0.0], 0, first_step, True
    num_batches = len(share)
    optimizer.zero_grad(set_to_none=True)
    for number, batch in enumerate(timed(batches, waited)):
        batch = batch.to(device)
        if args.color_jitter:
            batch = jitter_colours(batch, draws, args.color_jitter)
        if args.flip:
            batch = mirror(batch, draws)
        if chance := PROMPT_SAMPLING[args.prompt_sampling]:
            batch = draw_points_anew(batch, draws, chance)
        window = min(args.grad_accum, num_batches - number // args.grad_accum * args.grad_accum)
        window_ends = (number + 1) % args.grad_accum == 0 or number + 1 == num_batches
        masks = len(batch.rows) if share.share(number) else 0   # a batch that only fills up counts nothing
        with distributed.without_exchange(loss_of, not window_ends):
            with autocast:
                loss, iou = loss_of(batch)
            all_masks, bad = distributed.add_up([masks, not torch.isfinite(loss)], ranks).tolist()
            finite = finite and not bad     # on every process, or they would wait for one another's gradients for ever
            if finite:
                # DistributedDataParallel takes the mean over processes; what is wanted is the mean over all masks
                scaler.scale(loss * (masks * ranks.world_size / all_masks) / window).backward()
                if masks:
                    sums += torch.tensor([loss.item() * masks, iou.item() * masks, masks], dtype=torch.float64)
        if not window_ends:
            continue
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * schedule(step, total_steps, args.warmup)
        if finite:
            scaler.unscale_(optimizer)
            if step == 0 and not scaler.is_enabled():
                check_gradients(sam)
            finite = bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)))
            if finite:
                scaler.step(optimizer)
                bad_in_a_row = 0
                if average:
                    average.update()
            scaler.update()
        if not finite:
            skipped += 1
            bad_in_a_row += 1
            if bad_in_a_row == MAX_BAD_STEPS:
                raise UserError(f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite; "
                                "try --precision fp32, a smaller --learning_rate, and look at the masks")
        optimizer.zero_grad(set_to_none=True)
        finite = True
        step += 1
    *means, masks = distributed.add_up(sums, ranks).tolist()
    means = [value / masks if masks else math.nan for value in means]
    return {"train_loss": means[0], "train_iou": means[1], "bad_in_a_row": bad_in_a_row,
            "data_wait": waited[0] / (time.perf_counter() - started),
            "learning_rate": optimizer.param_groups[0]["lr"], "skipped_steps": skipped}


def timed(iterable, waited: list[float]):
    """The iterable's items; adds the seconds spent waiting for them to `waited[0]`."""
    iterator = iter(iterable)
    while True:
        started = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            waited[0] += time.perf_counter() - started
        yield item


def batch_loss(sam, batch, mask_loss, multimask_weight: float):
    """(loss to minimise, mean IoU of the single masks) of a batch on the device.

    The single mask, which is what prompts of several points or a box get, is compared in the model frame; of the three
    ambiguity masks the best one is, at their own low resolution. The IoU head learns the true IoU of all four.
    """
    import torch
    from torch.nn import functional as F

    from sam_lora.model.encode import frame_mask, image_embeddings
    from sam_lora.model.prompts import decode_all, upscale_to_frame
    from sam_lora.training.losses import frame_iou
    side = batch.targets.shape[-1]
    embeddings = image_embeddings(sam, batch)                                               # (B, C, h, w)
    masks, predicted_iou = decode_all(sam, embeddings[batch.image_index], batch.prompts)    # (N, 4, 4h, 4w), (N, 4)
    masks, predicted_iou = masks.float(), predicted_iou.float()
    with torch.autocast(batch.targets.device.type, enabled=False):
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


def select_precision(name: str, device, sam, ranks):
    """(autocast context, gradient scaler, name). auto: bf16 where the GPU has it, else fp16; on a CPU what is faster.

    float32 on a GPU multiplies matrices in TF32.
    """
    import torch

    from sam_lora.model.precision import bf16_is_faster
    from sam_lora.training import distributed
    if name == "auto":
        name = "fp32"
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        elif device.type == "cpu" and distributed.add_up([bf16_is_faster(sam)], ranks).item() == ranks.world_size:
            name = "bf16"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; on the CPU give fp32 or bf16")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    autocast = torch.autocast(device.type, dtype=types[name]) if name in types else contextlib.nullcontext()
    return autocast, torch.amp.GradScaler(device.type, enabled=name == "fp16"), name


def out_of_memory(args: argparse.Namespace, used: int, total: int) -> str:
    """What to say when a GPU of `total` bytes is full, with `used` bytes at the peak: the flags to try, in order."""
    tries = [
        ("--grad_checkpoint", not args.grad_checkpoint),
        (f"--batch_size {args.batch_size // 2} --grad_accum {args.grad_accum * 2}", args.batch_size > 1),
        ("--prompts_per_image 2", args.prompts_per_image > 2),
        ("--image_size 512", args.image_size is None or args.image_size > 512),
        ("--lora_blocks 4", args.lora_blocks is None or args.lora_blocks > 4),
        ("a smaller --model_type", args.model_type in ("vit_l", "vit_h"))]
    flags = ", ".join(flag for flag, applies in tries if applies)
    return (f"out of GPU memory: {used / 1e9:.1f} of {total / 1e9:.1f} GB were in use, with --model_type "
            f"{args.model_type} --batch_size {args.batch_size}"
            + (f" --image_size {args.image_size}" if args.image_size else "")
            + f"; expected a step that fits; try in this order: {flags or 'a GPU with more memory'}")


def run_digest(args: argparse.Namespace, val_csv: str | None) -> bytes:
    """SHA-256 of what all processes of a run must have alike: the flags that shape the result, and the tables."""
    apart = ("device", "num_workers", "save_dir", "cache_dir", "cache_ram_gb")
    flags = {name: value for name, value in vars(args).items() if name not in apart}
    digest = hashlib.sha256(repr(sorted(flags.items())).encode())
    for path in filter(None, (args.train_csv, val_csv)):
        digest.update(Path(path).read_bytes())
    return digest.digest()


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


def resume(path: Path, header: dict, sam, optimizer, scaler, average) -> dict:
    """Put the state of an earlier run back; returns what the loop needs. UserError if it was another kind of run."""
    from sam_lora.model import checkpoints
    content = checkpoints.load_checkpoint(path)
    training = content.get("training")
    if not isinstance(training, dict):
        raise UserError(f"{path}: holds no training state; --resume needs the last.ckpt of train.py")
    for name in ("model_type", "image_size", "base_sha256", "lora", "train_decoder"):
        before = content["header"][name]
        if name == "lora":
            before = {"rslora": False, "dora": False, **before}  # absent in the first checkpoints
        if before != header[name]:
            raise UserError(f"{path}: was trained with {name} {before}, this run has {header[name]}; "
                            "resume with the same flags, or start anew in another --save_dir")
    if ("average" in training) != (average is not None):
        raise UserError(f"{path}: was trained {'with' if 'average' in training else 'without'} --ema, this run is not; "
                        "resume with the same flags, or start anew in another --save_dir")
    checkpoints.load_trained_state(sam, training.pop("weights", content["state"]), path)
    try:
        if average:
            average.load_state(training.pop("average"))
        training.pop("step", None)  # earlier versions counted; it follows from the epoch
        optimizer.load_state_dict(training.pop("optimizer"))
        scaler.load_state_dict(training.pop("scaler"))
        training.pop("random_state")  # each epoch starts its generators anew; kept for those who look
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its training state does not fit ({error}); "
                        "start anew in another --save_dir") from error
    return training


def keep_top(top: list, k: int, save_dir: Path, header: dict, state: dict) -> None:
    """Write this epoch's checkpoint if it is among the k best, drop the one it displaces. `top`: [[iou, epoch], …]."""
    from sam_lora.model import checkpoints
    val_iou, epoch = header["metrics"]["val_iou"], header["epoch"]
    ranked = sorted([*top, [val_iou, epoch]], key=lambda entry: (-entry[0], entry[1]))
    if [val_iou, epoch] in ranked[:k]:
        checkpoints.save_checkpoint(save_dir / contracts.epoch_checkpoint(epoch, val_iou), header, state)
    for old_iou, old_epoch in ranked[k:]:
        (save_dir / contracts.epoch_checkpoint(old_epoch, old_iou)).unlink(missing_ok=True)
    top[:] = ranked[:k]


def log_row(epoch: int, train_loss: float = math.nan, train_iou: float = math.nan, val_loss: float = math.nan,
            val_iou: float = math.nan, learning_rate: float = math.nan, seconds: float = math.nan,
            images_per_s: float = math.nan, data_wait: float = math.nan, peak_memory_mb: float = math.nan,
            skipped_steps: int = 0) -> dict:
    """One row of training_log.csv."""
    return {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss, "train_iou": train_iou, "val_iou": val_iou,
            "learning_rate": learning_rate, "seconds": round(seconds, 2), "images_per_s": round(images_per_s, 2),
            "data_wait": round(data_wait, 4), "peak_memory_mb": round(peak_memory_mb, 1),
            "skipped_steps": skipped_steps}


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


def progress(iterable, description: str, total: int, unit: str, shown: bool):
    from tqdm import tqdm
    return tqdm(iterable, desc=description, total=total, unit=unit, leave=False, disable=None if shown else True)


if __name__ == "__main__":
    cli.run(main, get_args_parser())

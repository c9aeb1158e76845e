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
import math
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sam_lora import cli, contracts
from sam_lora.errors import UserError
from sam_lora.sam_types import LORA_TARGETS, LOSSES, SAM_TYPES

PROMPT_SAMPLING = {  # --prompt_sampling: how often which kind of prompt, and the default --correction_rounds
    "simulated": ({"table": 0.2, "other_points": 0.1, "points": 0.3, "box": 0.25, "box_and_points": 0.15}, 3),
    "table": ({"table": 1.0}, 0),
    "random": ({"other_points": 1.0}, 0),
    "mixed": ({"table": 0.5, "other_points": 0.5}, 0),
}
PIXEL_AUGMENTATION = {"flip": (True, False), "color_jitter": (0.0, 0.0)}  # default without and with kept features
BY_MODEL = {  # defaults that differ: the small SAM learns faster, and fits many images in a batch
    "vit_mini": {"batch_size": 8, "learning_rate": 1e-3},
    "vit_b": {"batch_size": 4, "learning_rate": 2e-4},
    "vit_l": {"batch_size": 2, "learning_rate": 2e-4},
    "vit_h": {"batch_size": 1, "learning_rate": 1e-4},
}
OUTPUTS = ("sam-lora-epoch=*.ckpt", contracts.LAST_CHECKPOINT, contracts.FINAL_CHECKPOINT, contracts.TRAINING_LOG,
           contracts.TRAINING_CURVES)


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    for add_flags in (add_data, add_model_and_lora, add_optimisation, add_hardware, add_output):
        add_flags(parser)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--train_csv", default=contracts.training_table("train"), metavar="FILE", help="table of step 3")
    add("--val_csv", metavar="FILE",
        help="table of step 3; default: val_reformatted.csv beside --train_csv, if it is there")
    add("--prompts_per_image", type=cli.positive_int, default=8, metavar="N",
        help="rows that share an image are trained together, up to this many, on one encoding of it")
    add("--prompt_sampling", choices=PROMPT_SAMPLING, default="simulated",
        help="simulated: in every epoch new prompts, drawn from the masks, of the kinds in --prompt_mix; table: the "
             "table's alone; random: as many other points of the mask; mixed: random for half of the rows. Validation "
             "always has the table's")
    add("--prompt_mix", nargs="+", type=prompt_share, metavar="KIND=SHARE",
        help="kinds of simulated prompts and how often: table, other_points (as many as the table has), points (1 to "
             "3), box (each side about 10 %% off), box_and_points; default: "
             + " ".join(f"{kind}={share:g}" for kind, share in PROMPT_SAMPLING["simulated"][0].items()))
    add("--correction_rounds", type=cli.non_negative_int, metavar="N",
        help="after each prompt, N simulated corrective clicks, each given with the earlier ones and the mask so far; "
             f"default: {PROMPT_SAMPLING['simulated'][1]} where prompts are simulated, else 0")
    add("--flip", action=argparse.BooleanOptionalAction,
        help="mirror training images at random, both ways; default: on, unless --feature_cache is")
    add("--color_jitter", type=cli.fraction, metavar="F",
        help="change brightness, contrast and saturation of training images by up to this fraction; default: 0")
    add("--find", action=argparse.BooleanOptionalAction,
        help="also learn to find all objects of the table's classes without a prompt; default: on where the table has "
             "whole photos or tiles of them, off where it has crops, whose other objects are unknown")
    cli.add_num_workers(group, 2)


def add_model_and_lora(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    cli.add_model(group)
    add = group.add_argument
    add("--image_size", type=cli.positive_int, metavar="PX",
        help="side of the model frame; default: the model's own (1024; vit_mini 256). Smaller is faster")
    add("--train_decoder", action=argparse.BooleanOptionalAction, default=True, help="train the mask decoder too")
    add = parser.add_argument_group("LoRA").add_argument
    add("--lora_rank", type=cli.positive_int, default=16, metavar="R", help="width of the low-rank pair")
    add("--lora_alpha", type=cli.non_negative_float, default=32, metavar="A",
        help="the pair's output is scaled by alpha / rank")
    add("--lora_dropout", type=cli.non_negative_float, default=0.0, metavar="P", help="dropout before the pair")
    add("--lora_targets", nargs="+", choices=LORA_TARGETS, default=["qkv"], metavar="LAYER",
        help=f"layers of each encoder block that get LoRA: {', '.join(LORA_TARGETS)}")
    add("--lora_blocks", type=cli.non_negative_int, metavar="N",
        help="adapt the last N encoder blocks only; default: all; 0 leaves the encoder frozen")
    add("--rslora", action="store_true", help="scale by alpha / sqrt(rank): for large ranks")
    add("--dora", action="store_true", help="train the length of each output's weights beside their direction; slower")


def add_optimisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    add = group.add_argument
    batch_sizes, learning_rates = (", ".join(f"{defaults[name]:g} for {model}" for model, defaults in BY_MODEL.items())
                                   for name in ("batch_size", "learning_rate"))
    add("--num_epochs", type=cli.positive_int, default=20, metavar="N", help="passes over the training table")
    add("--batch_size", type=cli.positive_int, metavar="N",
        help=f"images a step (of each process under torchrun); default: {batch_sizes}")
    add("--grad_accum", type=cli.positive_int, default=1, metavar="N",
        help="batches whose gradients are added up before a step: larger steps, same memory")
    add("--learning_rate", type=cli.non_negative_float, metavar="LR",
        help=f"peak, after warm-up; default: {learning_rates}")
    add("--weight_decay", type=cli.non_negative_float, default=0.01, metavar="WD", help="AdamW's")
    add("--warmup", type=cli.non_negative_float, default=0.05, metavar="F",
        help="fraction of all steps in which the learning rate rises; a cosine falls after it")
    add("--loss", choices=LOSSES, default="bce_iou", help="BCE + soft IoU, SAM's 20 focal + Dice, or BCE + Dice")
    add("--multimask_weight", type=cli.non_negative_float, default=0.25, metavar="W",
        help="weight of the best of the three ambiguity masks, for automatic mask generation; 0 does not train them")
    add("--ema", type=cli.fraction, default=0.0, metavar="D",
        help="validate and keep a moving average of the weights: 0.99 averages about the last 100 steps; 0: none")
    add("--patience", type=cli.positive_int, default=5, metavar="N",
        help="stop after this many epochs without a better validation IoU")
    add("--stop_after_epoch", type=cli.positive_int, metavar="N",
        help="end this run after epoch N of --num_epochs, to go on with --resume later")
    cli.add_seed(group)


def add_hardware(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("hardware")
    cli.add_device(group)
    cli.add_precision(group)
    add = group.add_argument
    add("--grad_checkpoint", action="store_true",
        help="recompute encoder blocks in the backward pass: less memory, more time")
    add("--compile", action="store_true", help="torch.compile the blocks of the image encoder")
    add = parser.add_argument_group("frozen work, done once").add_argument
    add("--feature_cache", action=argparse.BooleanOptionalAction,
        help="keep what the frozen encoder blocks make of each image, so that only the first epoch pays for them; "
             "default: on where --lora_blocks leaves frozen blocks and --flip was not given")
    add("--cache_ram_gb", type=cli.non_negative_float, default=4, metavar="GB",
        help="no longer has an effect: the operating system keeps in memory what fits")
    add("--cache_dir", metavar="DIR",
        help="keep it in this folder, for later runs too; it may be deleted at any time; default: "
             f"{contracts.FEATURE_CACHE_FOLDER} in --save_dir")
    add("--cache_precision", choices=("fp32", "fp16", "bf16"), default="fp32",
        help="precision it is kept in: fp32 is exact, the others take half the space")


def add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--save_dir", default=contracts.CHECKPOINTS_FOLDER, metavar="DIR", help="checkpoints go here")
    add("--save_top_k", type=cli.non_negative_int, default=3, metavar="K", help="keep the K best epochs' checkpoints")
    add("--resume", action="store_true", help="go on from last.ckpt in --save_dir")
    cli.add_overwrite(group)


def prompt_share(text: str) -> tuple[str, float]:
    """"box=0.3" -> ("box", 0.3)."""
    kind, _, share = text.partition("=")
    if kind not in PROMPT_SAMPLING["simulated"][0]:
        raise argparse.ArgumentTypeError(f"{text!r}: unknown kind {kind!r}; expected KIND=SHARE, the kind being one of "
                                         f"{', '.join(PROMPT_SAMPLING['simulated'][0])}")
    return kind, cli.non_negative_float(share)


def settle(args: argparse.Namespace) -> None:
    """Fill in every default that depends on another flag; parser.error for flags that contradict each other."""
    refuse = get_args_parser().error
    changing_pixels = [f"--{name}" for name in PIXEL_AUGMENTATION if getattr(args, name)]
    if args.resume and args.overwrite:
        refuse("--resume goes on with a run and --overwrite throws it away: give one of them")
    if args.lora_blocks == 0 and not args.train_decoder:
        refuse("--lora_blocks 0 with --no-train_decoder leaves nothing to train")
    if args.prompt_mix and args.prompt_sampling != "simulated":
        refuse(f"--prompt_mix says which prompts are simulated and --prompt_sampling {args.prompt_sampling} has none: "
               "give one of them")
    if args.prompt_mix and not sum(share for _, share in args.prompt_mix):
        refuse("--prompt_mix: all shares are 0; give one of the kinds a share above 0")
    if args.correction_rounds and args.prompt_sampling == "table":
        refuse("--prompt_sampling table trains on the table's prompts alone and --correction_rounds adds clicks: give "
               "one of them")
    if args.feature_cache and changing_pixels:
        refuse(f"--feature_cache keeps the features of unchanged images and {changing_pixels[0]} changes them in every "
               "epoch: give one of them")
    if args.feature_cache is None:
        args.feature_cache = trained_blocks(args) < SAM_TYPES[args.model_type].depth and not changing_pixels
    defaults = {name: values[args.feature_cache] for name, values in PIXEL_AUGMENTATION.items()}
    for name, value in (BY_MODEL[args.model_type] | defaults).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    mix, rounds = PROMPT_SAMPLING[args.prompt_sampling]
    args.prompt_mix = dict(args.prompt_mix) if args.prompt_mix else mix
    args.correction_rounds = rounds if args.correction_rounds is None else args.correction_rounds
    args.cache_dir = args.cache_dir or str(Path(args.save_dir) / contracts.FEATURE_CACHE_FOLDER)
    beside = Path(args.train_csv).parent / contracts.training_table("val")
    if not args.val_csv and beside.is_file():
        args.val_csv = str(beside)


def trained_blocks(args: argparse.Namespace) -> int:
    return SAM_TYPES[args.model_type].depth if args.lora_blocks is None else args.lora_blocks


def earlier_files(args: argparse.Namespace) -> list[Path]:
    """What an earlier run left in --save_dir. UserError if the flags do not say what to do with it."""
    folder = Path(args.save_dir)
    existing = [path for pattern in OUTPUTS for path in folder.glob(pattern)] if folder.is_dir() else []
    if existing and not (args.resume or args.overwrite):
        raise UserError(f"{folder}: holds an earlier run ({existing[0].name}); give --resume to go on with it, "
                        "--overwrite to replace it, or another --save_dir")
    if args.resume and not (folder / contracts.LAST_CHECKPOINT).is_file():
        raise UserError(f"{folder / contracts.LAST_CHECKPOINT}: no such file, so nothing to go on with; "
                        "run without --resume")
    return existing


def main(args: argparse.Namespace) -> None:
    settle(args)
    existing = earlier_files(args)
    from sam_lora.model.precision import select_device
    from sam_lora.training import distributed, memory
    ranks = distributed.ranks_of_environment()
    device = select_device(distributed.device_of_process(args.device, ranks))
    try:
        with distributed.joined(ranks, device), memory.advice(vars(args), device):
            train(args, existing, device, ranks)
    except KeyboardInterrupt:
        last = Path(args.save_dir) / contracts.LAST_CHECKPOINT
        if ranks.first and last.is_file():
            print(f"\nthe last finished epoch is in {last}; go on with --resume", file=sys.stderr)
        raise


def train(args: argparse.Namespace, existing: list[Path], device, ranks) -> None:
    """What is prepared once, then the loop over epochs. `existing`: files of an earlier run, to be replaced."""
    from sam_lora.model.checkpoints import trained_state
    from sam_lora.results.validation import validate_finder
    from sam_lora.training import distributed
    from sam_lora.training.epoch import Epoch
    from sam_lora.training.finding import complete_finder, plan_finder
    from sam_lora.training.loading import seed_epoch
    from sam_lora.training.losses import MASK_LOSSES, batch_loss
    from sam_lora.training.run_state import Run
    from sam_lora.training.update import LearningRate, Update
    tables = read_tables(args, ranks)
    find = plan_finder(tables.train, args.find, ranks)
    sam, base_sha256, precision = build_model(args, device, find, ranks)
    features = make_features(args, sam, base_sha256, precision)
    train_loader, val_loader = make_loaders(args, tables, sam, features, ranks)
    steps_per_epoch = math.ceil(len(train_loader) / args.grad_accum)
    learning_rate = LearningRate(args.learning_rate, args.num_epochs * steps_per_epoch, args.warmup)
    update = Update.by_adamw(sam, precision.scaler, learning_rate, args.weight_decay, args.ema)
    header = checkpoint_header(args, sam, base_sha256, find, tables)
    run = Run(Path(args.save_dir), header, validated=val_loader is not None)
    if args.resume:
        run.resume(update)
        ranks.say(f"resumed after epoch {run.epoch}")
    if features:
        images = [sample.image for sample in (*tables.train, *tables.val)]
        ranks.say(features.fill_together(images, args.batch_size, ranks))
    validation = partial(validate, sam, val_loader, MASK_LOSSES[args.loss], precision, ranks)
    finder_validation = partial(validate_finder, sam, tables.val, precision.autocast)
    loss = partial(batch_loss, mask_loss=MASK_LOSSES[args.loss], multimask_weight=args.multimask_weight)
    loss_of = distributed.replicate(loss, sam, ranks, device)
    if not run.log:
        run.start(validation, existing, ranks)

    last_epoch = min(args.num_epochs, args.stop_after_epoch or args.num_epochs)
    for number in range(run.epoch + 1, last_epoch + 1):
        seed_epoch(args.seed, number, ranks)
        epoch = Epoch(number, device, ranks)
        update.start_epoch(first_step=(number - 1) * steps_per_epoch)
        for batch, part in epoch.timed(train_loader.epoch(number, args.grad_accum), len(train_loader)):
            with distributed.no_exchange(loss_of, unless=part.ends_step):
                with precision.autocast:
                    loss, iou = loss_of(batch.to(device))
                update.backward(loss, part.weight)
            epoch.add(loss, iou, part.masks)
            if part.ends_step:
                update.step()  # the only place where the host waits for the GPU
        epoch.trained()
        with update.averaged():
            val_loss, val_iou = validation()
            find_f1 = finder_validation(ranks)[1] if find and tables.val else None
            state = trained_state(sam)  # one copy, which the files share
        run.finish(epoch.log_row(val_loss, val_iou, find_f1, len(train_loader.images), update), state)
        if ranks.first:
            run.save(update, state, args.save_top_k)
        ranks.say("\n".join([*(features.take_notes() if features else ()), run.line()]))
        if run.stale >= args.patience:
            ranks.say(f"no better validation IoU for {args.patience} epochs: stopped")
            break
    else:
        if last_epoch < args.num_epochs:
            ranks.say(f"stopped after epoch {last_epoch} of {args.num_epochs} as asked; go on with --resume")
            return
    if ranks.first:
        if find:
            steps = steps_per_epoch * run.epoch
            print(complete_finder(sam, tables.train, run, steps, args.seed, precision, finder_validation))
        print(run.write_final())


@dataclass(frozen=True)
class Tables:
    """The rows (`Sample`) of both tables; `val` is empty without a validation table."""

    train: list
    val: list = field(default_factory=list)


def read_tables(args: argparse.Namespace, ranks) -> Tables:
    """Both tables, checked: whatever can be wrong with them is reported before the model is built."""
    from sam_lora.data.samples import check_samples, read_samples
    from sam_lora.training import distributed
    tables = []
    with distributed.one_first(ranks):
        for path in filter(None, (args.train_csv, args.val_csv)):
            tables.append(read_samples(path))
            check_samples(tables[-1], path, need_labels=True)
    distributed.check_agreement(ranks, vars(args), [args.train_csv, args.val_csv])
    return Tables(*tables)


def build_model(args: argparse.Namespace, device, find: dict | None, ranks):
    """(SAM with LoRA on the device, SHA-256 of its base weights, Precision)."""
    import torch

    from sam_lora import workers
    from sam_lora.model.checkpoints import prepare_for_training
    from sam_lora.model.lora import trainable_parameters
    from sam_lora.model.sam import checkpoint_blocks, compile_blocks, load_sam
    from sam_lora.training import distributed
    from sam_lora.training.precision import choose_precision
    workers.keep_freed_memory()
    torch.manual_seed(args.seed)  # LoRA's A is drawn from torch's global generator
    with distributed.one_first(ranks):  # one downloads, the others find the file
        sam, base_sha256 = load_sam(args.model_type, args.checkpoint, args.image_size)
    precision = choose_precision(args.precision, device, sam, ranks)
    adapted = prepare_for_training(sam, lora_settings(args), args.train_decoder, find)
    if args.grad_checkpoint:
        checkpoint_blocks(sam)
    sam.to(device)
    if args.compile:  # with kept features the frozen part runs once
        compile_blocks(sam, trained_blocks(args) if args.feature_cache else len(sam.image_encoder.blocks))
    trained, total = (sum(map(torch.numel, weights))
                      for weights in (trainable_parameters(sam).values(), sam.parameters()))
    ranks.say(f"{args.model_type} at {sam.image_encoder.img_size} px on {device} in {precision.name}: LoRA on "
              f"{len(adapted)} layers, {trained:,} of {total:,} parameters train ({trained / total:.1%})"
              + (f"; {ranks.world_size} processes" if ranks.world_size > 1 else ""))
    return sam, base_sha256, precision


def lora_settings(args: argparse.Namespace) -> dict:
    return {"rank": args.lora_rank, "alpha": args.lora_alpha, "dropout": args.lora_dropout,
            "targets": sorted(set(args.lora_targets)), "blocks": args.lora_blocks, "rslora": args.rslora,
            "dora": args.dora}


def checkpoint_header(args: argparse.Namespace, sam, base_sha256: str, find: dict | None, tables: Tables) -> dict:
    from sam_lora.data.samples import prompt_kind
    from sam_lora.model.checkpoints import library_versions
    return {"model_type": args.model_type, "image_size": sam.image_encoder.img_size, "base_sha256": base_sha256,
            "lora": lora_settings(args), "train_decoder": args.train_decoder, "find": find,
            "prompt": prompt_kind(tables.train), "prompt_mix": args.prompt_mix,
            "correction_rounds": args.correction_rounds, "epoch": 0, "metrics": {}, "args": dict(vars(args)),
            "versions": library_versions()}


def make_features(args: argparse.Namespace, sam, base_sha256: str, precision):
    """The cache of what the frozen encoder blocks make of each image, still empty, or None."""
    from sam_lora.training.feature_cache import FeatureCache
    settings = trained_blocks(args), base_sha256, precision, args.cache_precision, Path(args.cache_dir)
    return FeatureCache(sam, *settings) if args.feature_cache else None


def make_loaders(args: argparse.Namespace, tables: Tables, sam, features, ranks):
    """(Loader of the training table, Loader of the validation table or None)."""
    from sam_lora.model.augment import Augmentation
    from sam_lora.model.batches import PromptedImages
    from sam_lora.model.finder import cell_side, finder_of
    from sam_lora.model.finder_targets import Scenes
    from sam_lora.model.prompt_mix import PromptMix
    from sam_lora.training.loading import Loader
    ranks.say(f"{len(tables.train)} training rows, {len(tables.val)} validation rows"
              + ("" if tables.val else ": without validation, the last epoch is the final one"))
    augment = Augmentation(args.seed, args.flip, args.color_jitter, PromptMix(**args.prompt_mix),
                           args.correction_rounds)
    side, read = sam.image_encoder.img_size, features.files if features else None
    finder = finder_of(sam)
    scenes = finder and Scenes(tables.train, finder.class_names, cell_side(sam))
    train_images = PromptedImages(tables.train, side, args.prompts_per_image, True, False, read, augment, scenes)
    labelled = [sample for sample in tables.val if not sample.background]
    val_images = PromptedImages(labelled, side, args.prompts_per_image, True, True, read)
    settings = {"batch_size": args.batch_size, "num_workers": args.num_workers, "ranks": ranks, "features": features,
                "pin_memory": sam.device.type == "cuda"}
    return Loader(train_images, **settings, seed=args.seed), Loader(val_images, **settings) if labelled else None


def validate(sam, loader, mask_loss, precision, ranks) -> tuple[float, float]:
    """(mean loss, mean IoU at full resolution) on the validation table; NaN without one."""
    from sam_lora.results.validation import validation_scores
    from sam_lora.training import distributed
    if loader is None:
        return math.nan, math.nan
    rows = len(loader.images.samples)
    scores = validation_scores(sam, loader, rows, precision.autocast, mask_loss, quiet=not ranks.first)
    loss, iou = (distributed.add_up(scores.flatten(), ranks).reshape(-1, 2).sum(dim=0) / rows).tolist()
    return loss, iou


if __name__ == "__main__":
    cli.run(main, get_args_parser())

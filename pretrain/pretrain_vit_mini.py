r"""Train the small SAM (vit_mini) from scratch on procedural scenes, for a given time.

Reads   nothing: scenes are made on the fly (scenes.py)
Writes  STATE                    all that --resume needs, replaced at each evaluation
        OUTPUT_DIR/log.csv       a row about every minute: step, loss and IoU of the training batches, seconds a step
        OUTPUT_DIR/curve.csv     a row for each evaluation of the averaged weights on held-out crops at full size
        OUTPUT                   the averaged weights as a plain SAM state dict, replaced whenever they score higher

    python pretrain/pretrain_vit_mini.py --minutes 30 65 --sides 128 256 --output sam_lora/weights/sam_vit_mini.pth
    python pretrain/pretrain_vit_mini.py --device cuda --init WEIGHTS --minutes 5 --sides 256 --images 192 --masks 4 \
        --learning_rates 1.5e-3 --num_workers 14 --evaluate_every 0.75 --num_judged 256
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sam_lora import cli


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    stages = parser.add_argument_group("stages")
    stages.add_argument("--sides", type=int, nargs="+", default=[128, 256],
                        help="side of the model frame in pixels, per stage")
    stages.add_argument("--minutes", type=float, nargs="+", default=[30, 65], help="minutes of training, per stage")
    stages.add_argument("--images", type=int, nargs="+", default=[16, 8], help="images in a batch, per stage")
    stages.add_argument("--masks", type=int, nargs="+", default=[4, 4],
                        help="regions prompted in each image, per stage")
    stages.add_argument("--learning_rates", type=float, nargs="+", default=[1e-3, 7e-4],
                        help="peak, per stage; falls to half by the end of a stage, to zero by the end of the last")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--warmup", type=int, default=100, help="steps of warm-up at the start of each stage")
    optimisation.add_argument("--weight_decay", type=float, default=0.05)
    optimisation.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    optimisation.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    cli.add_seed(optimisation)
    run = parser.add_argument_group("run")
    run.add_argument("--threads", type=int, default=2, help="of PyTorch")
    cli.add_num_workers(run, 1)
    cli.add_device(run)
    run.add_argument("--precision", choices=("fp32", "bf16"), help="of the model's passes; default: bf16 on a GPU, and "
                     "on a CPU with instructions for it")
    run.add_argument("--replay", type=cli.non_negative_int, metavar="N",
                     help="images kept on the device, for steps to draw from while workers paint new ones; 0: each is "
                          "used once; default: 30000 on a GPU, 0 elsewhere")
    run.add_argument("--evaluate_every", type=float, default=5, help="minutes between evaluations")
    run.add_argument("--num_judged", type=cli.positive_int, default=128, help="held-out crops in an evaluation")
    start = run.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from STATE, on any device")
    start.add_argument("--init", metavar="FILE", help="start from these weights with fresh optimisers")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default="demo_output/pretrain", metavar="DIR", help="state, log and curve go here")
    out.add_argument("--state", metavar="FILE", help="all that --resume needs; default: OUTPUT_DIR/state.pt")
    out.add_argument("--output", default="sam_lora/weights/sam_vit_mini.pth", metavar="FILE",
                     help="the best weights so far")
    return parser


def settle(args: argparse.Namespace, on_gpu: bool) -> None:
    """Set the flags whose default depends on the device. UserError for a store that no worker would fill."""
    from sam_lora.errors import UserError
    from sam_lora.model.attention_cpu import has_bf16_products
    if args.precision is None:
        args.precision = "bf16" if on_gpu or has_bf16_products() else "fp32"
    if args.replay is None:
        args.replay = 30_000 if on_gpu and args.num_workers else 0
    if args.replay and not args.num_workers:  # painting in a thread would take Python's lock from every step
        raise UserError(f"--replay {args.replay} --num_workers 0: expected at least one worker to fill the store")


def main(args: argparse.Namespace) -> None:
    import torch
    from held_out import Judge
    from run_state import first_state
    from stages import Settings, make_stages, run_stage

    from sam_lora.model.precision import select_device
    stages = make_stages(args.sides, args.minutes, args.images, args.masks, args.learning_rates)
    device = select_device(args.device)
    settle(args, device.type == "cuda")
    torch.backends.cuda.matmul.allow_tf32 = True  # more than the optimiser's products need
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    torch.set_num_threads(args.threads)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    state_path = Path(args.state or folder / "state.pt")
    state = first_state(state_path, args.resume, args.init)
    judge = Judge(folder, Path(args.output), state_path, args.num_judged, device)
    for stage in stages[state.progress.stage:]:
        state = run_stage(stage, state, judge, settings)


if __name__ == "__main__":
    cli.run(main, get_args_parser())

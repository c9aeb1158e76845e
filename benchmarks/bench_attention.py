"""The encoder's attention alone, forward and backward, by every way there is: which should `attend` take?

    python benchmarks/bench_attention.py --device cuda --output attention.json
    python benchmarks/bench_attention.py --quick                                  small, also on a CPU

The cases are the windows (14 x 14) and the global blocks (64 x 64) of vit_b with 8 images and vit_h with 4, in bfloat16
on a GPU and float32 elsewhere. Each way's output and gradients are compared with a plain computation in float32 first,
by the norm of the difference; a way that is further off than LARGEST_ERROR, or fails, is reported and never the
fastest. Times are the median of several passes (CUDA events), forward and backward together; memory is what the passes
add at their peak; FLOPs are those of the attention itself, without what a way adds to them. The last lines name the
fastest ways, as sam_lora/model/attention.py's table `FASTEST` does.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam_lora import cli
from sam_lora.files import atomic_path
from sam_lora.model.attention import FASTEST, WAYS, folded_attention
from sam_lora.model.precision import select_device
from sam_lora.model.relative_positions import relative_logits
from sam_lora.sam_types import SAM_TYPES

LARGEST_ERROR = {torch.bfloat16: 2e-2, torch.float32: 1e-4}  # relative, of the output and of each gradient
MOST_PAIRS = 2**32          # above it nothing is computed that stores pairs: on a GPU; 2 GB a tensor for each 2**30
CHECKED = {"windows": 100, "global": 2}     # heads that are compared with float32


@dataclass(frozen=True)
class Case:
    """The attention of one block for a batch: `heads` is images x windows x heads."""

    model_type: str
    kind: str       # "windows" or "global"
    side: int       # of the grid of tokens
    heads: int
    width: int

    @property
    def pairs(self) -> int:
        return self.heads * self.side ** 4

    @property
    def flops(self) -> float:
        """Two products forward, five backward (the logits are computed again), of 2 FLOPs each."""
        return 7 * 2 * self.pairs * self.width


@dataclass
class Result:
    """`seconds` of a forward and backward pass; `problem` in place of the figures of a way that cannot be taken."""

    model_type: str
    kind: str
    way: str
    dtype: str
    error: float | None = None
    forward_seconds: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    tflops: float | None = None
    problem: str = ""


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_device(parser)
    parser.add_argument("--quick", action="store_true", help="few heads, a small grid and two passes")
    parser.add_argument("--passes", type=cli.positive_int, default=10, metavar="N", help="timed passes of each way")
    parser.add_argument("--seconds", type=cli.positive_int, default=75, metavar="S",
                        help="begin no further way after this time")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all figures to this .json file")
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    began, device = time.perf_counter(), select_device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    passes = 2 if args.quick else args.passes
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"attention on {name}, torch {torch.__version__}, {dtype}\n\n"
          "| case | way | ms forward + backward | forward | TFLOP/s | MB | error |\n|---|---|---|---|---|---|---|")
    results = []
    for case in cases(args.quick):
        for way, compute in ways(device, case).items():
            if time.perf_counter() - began > args.seconds:
                results.append(Result(case.model_type, case.kind, way, str(dtype), problem="no time left"))
            else:
                results.append(measure(case, way, compute, device, dtype, passes, args.seed))
            print(line_of(results[-1]), flush=True)
    best = fastest(results)
    print()
    for (model_type, kind), result in best.items():
        print(f"fastest for {kind} of {model_type}: {result.way}, {result.seconds * 1e3:.2f} ms; the table takes "
              f"{FASTEST.get((device.type, kind, dtype != torch.float32), 'folded')}")
    if args.output:
        content = {"device": name, "torch": torch.__version__, "dtype": str(dtype),
                   "results": [asdict(result) for result in results],
                   "fastest": {f"{model_type} {kind}": result.way for (model_type, kind), result in best.items()}}
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def cases(quick: bool) -> list[Case]:
    """Windows first: they are quick, and most blocks have them."""
    found = []
    for model_type, images in (("vit_b", 8), ("vit_h", 4)):
        kind = SAM_TYPES[model_type]
        width, grid = kind.embed_dim // kind.num_heads, kind.image_size // kind.patch_size
        windows = (-(-grid // kind.window_size)) ** 2
        if quick:
            images, windows, grid = 1, 1, 16
        found += [Case(model_type, "windows", kind.window_size, images * windows * kind.num_heads, width),
                  Case(model_type, "global", grid, images * kind.num_heads, width)]
    return sorted(found, key=lambda case: case.model_type)


def ways(device: torch.device, case: Case) -> dict[str, Callable]:
    """What there is on the device for the case, by name: the names of `attention.WAYS`, and others to compare."""
    stores_pairs = {"stored pairs": stored_pairs, "biased": WAYS["biased"]}
    if device.type != "cuda":
        return {"cpu": WAYS["cpu"], "folded": WAYS["folded"], "folded_unpadded": WAYS["folded_unpadded"],
                **stores_pairs}
    found = {name: WAYS[name] for name in ("folded", "folded_unpadded", "folded_cudnn")}
    found |= {"folded, FlashAttention only": only(SDPBackend.FLASH_ATTENTION, folded_attention),
              "folded, cuDNN only": only(SDPBackend.CUDNN_ATTENTION, partial(folded_attention, pad_v=False)),
              "folded, cuDNN only, v padded": only(SDPBackend.CUDNN_ATTENTION, folded_attention),
              "folded, memory-efficient only": only(SDPBackend.EFFICIENT_ATTENTION,
                                                    partial(folded_attention, pad_v=False)),
              "folded, memory-efficient only, v padded": only(SDPBackend.EFFICIENT_ATTENTION, folded_attention)}
    if case.pairs <= MOST_PAIRS:
        found |= stores_pairs | {
            "biased, memory-efficient only": only(SDPBackend.EFFICIENT_ATTENTION, WAYS["biased"]),
            "biased, cuDNN only": only(SDPBackend.CUDNN_ATTENTION, WAYS["biased"])}
    return found | {"flexible": WAYS["flexible"]}   # last: it compiles


def only(backend: SDPBackend, compute: Callable) -> Callable:
    def computed(*inputs) -> Tensor:
        with sdpa_kernel(backend):
            return compute(*inputs)
    return computed


def stored_pairs(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """segment_anything's own formulas; under autocast it takes the softmax in float32."""
    q, k, v = qkv
    logits = ((q * scale) @ k.transpose(1, 2)).unflatten(2, (len(table_h), len(table_w)))
    rel_h, rel_w = relative_logits(q, table_h, table_w)
    logits = (logits + rel_h[..., None] + rel_w[..., None, :]).flatten(2)
    return logits.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v


# ---- one way, one case ---------------------------------------------------------------------------------------

def draw(case: Case, heads: int, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[list[Tensor], Tensor]:
    """(qkv and both tables, the output's gradient): values of the size that a trained encoder has."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=device, generator=generator) * std).to(dtype)

    tokens, table = case.side ** 2, (case.side, case.side, case.width)
    qkv = normal(3, heads, tokens, case.width).requires_grad_()
    return [qkv, normal(*table, std=0.1), normal(*table, std=0.1)], normal(heads, tokens, case.width)


def measure(case: Case, way: str, compute: Callable, device: torch.device, dtype: torch.dtype, passes: int,
            seed: int) -> Result:
    result = Result(case.model_type, case.kind, way, str(dtype))
    try:
        result.error = relative_error(case, compute, device, dtype, seed)
        if not result.error <= LARGEST_ERROR[dtype]:
            result.problem = f"error above {LARGEST_ERROR[dtype]:g}"
        result.forward_seconds, result.seconds, result.peak_mb = time_passes(case, compute, device, dtype, passes, seed)
        result.tflops = case.flops / result.seconds / 1e12
    except Exception as error:  # a kernel may refuse in any way; the others are measured all the same
        result.problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def relative_error(case: Case, compute: Callable, device: torch.device, dtype: torch.dtype, seed: int) -> float:
    """The largest relative error of the output and of the gradients of q, k and v.

    All heads are computed, so that what compiles does it once, and the first few compared: a head knows no other.
    """
    inputs, weight = draw(case, case.heads, device, dtype, seed + 1)
    count = CHECKED[case.kind]
    exact_inputs = [tensor.detach().float() for tensor in (inputs[0][:, :count], *inputs[1:])]
    exact_inputs[0].requires_grad_()
    outputs = []
    for tensors, function, gradient in ((inputs, compute, weight),
                                        (exact_inputs, stored_pairs, weight[:count].float())):
        out = function(*tensors, case.width ** -0.5)
        out.backward(gradient)
        outputs.append([tensor[:count].float() for tensor in (out.detach(), *tensors[0].grad)])
    return max(float((ours - exact).norm() / exact.norm()) for ours, exact in zip(*outputs))


def time_passes(case: Case, compute: Callable, device: torch.device, dtype: torch.dtype, passes: int,
                seed: int) -> tuple[float, float, float | None]:
    """(seconds of the forward pass, of both, MB that they add at their peak)."""
    inputs, weight = draw(case, case.heads, device, dtype, seed)
    on_gpu = device.type == "cuda"

    def both(timer: "Timer | None" = None) -> None:
        with timer or nullcontext():
            out = compute(*inputs, case.width ** -0.5)
            if timer:
                timer.mark()
            out.backward(weight)
        inputs[0].grad = None

    both()
    if on_gpu:
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    timers = [Timer(on_gpu) for _ in range(passes)]
    for timer in timers:
        both(timer)
    if on_gpu:
        torch.cuda.synchronize(device)
    peak = (torch.cuda.max_memory_allocated(device) - before) / 1e6 if on_gpu else None
    forward, total = zip(*(timer.seconds() for timer in timers))
    return statistics.median(forward), statistics.median(total), peak


class Timer:
    """Times a block and the part of it before `mark`, on the GPU by events, so that the host never waits."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu, self.marks = on_gpu, []

    def mark(self) -> None:
        if self.on_gpu:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def __enter__(self) -> None:
        self.mark()

    def __exit__(self, *_) -> None:
        self.mark()

    def seconds(self) -> tuple[float, float]:
        """(until the mark, in all)."""
        start, middle, end = self.marks
        if self.on_gpu:
            return start.elapsed_time(middle) / 1e3, start.elapsed_time(end) / 1e3
        return middle - start, end - start


def line_of(result: Result) -> str:
    case, error = f"{result.model_type} {result.kind}", "" if result.error is None else f"{result.error:.1e}"
    if result.seconds is None:
        return f"| {case} | {result.way} | {result.problem} | | | | {error} |"
    peak = "" if result.peak_mb is None else f"{result.peak_mb:,.0f}"
    return (f"| {case} | {result.way} | {result.seconds * 1e3:.2f} | {result.forward_seconds * 1e3:.2f} | "
            f"{result.tflops:.1f} | {peak} | {error} {result.problem} |")


def fastest(results: list[Result]) -> dict[tuple[str, str], Result]:
    """For each model and kind of block the fastest way that `attention.WAYS` has."""
    best: dict[tuple[str, str], Result] = {}
    for result in results:
        case = result.model_type, result.kind
        if result.way in WAYS and not result.problem and (
                case not in best or result.seconds < best[case].seconds):
            best[case] = result
    return best


if __name__ == "__main__":
    cli.run(main, get_args_parser())

"""Memory: the peak, and the advice for a full GPU."""

import torch

import train
from sam_lora.training.memory import out_of_memory, peak_memory_mb


def advice(*flags: str) -> str:
    args = train.get_args_parser().parse_args(["--model_type", "vit_b", *flags])
    train.settle(args)
    return out_of_memory(vars(args), 23_400_000_000, 24_000_000_000)


def test_a_full_gpu_is_reported_with_bytes_and_the_flags_to_try_in_order():
    text = advice("--batch_size", "8")
    assert "23.4 of 24.0 GB" in text and "--batch_size 8" in text and "\n" not in text
    tries = ["--grad_checkpoint", "--batch_size 4 --grad_accum 2", "--prompts_per_image 2", "--image_size 512",
             "--lora_blocks 4"]
    assert text.index("in this order") < text.index(tries[0])
    assert [text.index(flag) for flag in tries] == sorted(text.index(flag) for flag in tries)
    assert "--grad_checkpoint" not in advice("--batch_size", "1", "--grad_checkpoint")
    assert "--batch_size 0" not in advice("--batch_size", "1")


def test_the_peak_of_this_process_is_plausible():
    assert 50 < peak_memory_mb(torch.device("cpu")) < 1e6

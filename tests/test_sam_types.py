"""The names that flags choose from: one list each, readable without torch."""

import subprocess
import sys
from pathlib import Path

from sam_lora import cli
from sam_lora.sam_types import LOSSES, SAM_TYPES
from sam_lora.training.losses import MASK_LOSSES

ROOT = Path(__file__).resolve().parents[1]


def test_the_names_load_no_heavy_library():
    code = ("import sys; import sam_lora.sam_types; "
            "print(sorted({'torch', 'numpy', 'cv2', 'pandas', 'peft'} & set(sys.modules)))")
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


def test_the_command_line_offers_every_type_and_no_other():
    parser = cli.make_parser("")
    cli.add_model(parser)
    [model_type] = [action for action in parser._actions if action.dest == "model_type"]
    assert list(model_type.choices) == list(SAM_TYPES) == ["vit_b", "vit_l", "vit_h", "vit_mini"]


def test_every_loss_that_can_be_named_exists():
    assert set(MASK_LOSSES) == set(LOSSES)

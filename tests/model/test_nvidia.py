"""An NVIDIA card that torch cannot use: found by the driver's files or nvidia-smi; what to do about it."""

import os
import time

import pytest
from nvidia_machine import OPEN, driver_files, nvidia_smi, posix

from sam_lora.model.nvidia import Card, TorchBuild, find_card, hidden, pip_command, why_unused

T4 = Card("Tesla T4", (535, 104, 5))


# ---- is there a card? -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("files", "expected"), [
    pytest.param({}, Card("Tesla T4", (535, 104, 5)), id="NVIDIA's module"),
    pytest.param({"version": OPEN, "model": "NVIDIA H100 PCIe"}, Card("NVIDIA H100 PCIe", (570, 86, 15)), id="open"),
    pytest.param({"device": False}, Card("Tesla T4", (535, 104, 5), device_files=False), id="container without GPUs"),
    pytest.param({"model": None}, Card("an NVIDIA card", (535, 104, 5)), id="version alone"),
    pytest.param({"version": None}, Card("Tesla T4", None), id="card alone"),
    pytest.param({"version": "\0\nNVRM?"}, Card("Tesla T4", None), id="unreadable version"),
])
def test_a_card_by_the_driver_s_files(tmp_path, files, expected):
    assert find_card(driver_files(tmp_path, **files), search_path="") == expected


def test_the_driver_s_files_are_enough(tmp_path):
    path = nvidia_smi(tmp_path / "bin", f"touch {tmp_path}/started")
    assert find_card(driver_files(tmp_path / "root"), path) == T4
    assert not (tmp_path / "started").exists()


@posix
@pytest.mark.parametrize(("script", "expected"), [
    pytest.param('[ "$*" = "--query-gpu=name,driver_version --format=csv,noheader" ] && echo "Tesla T4, 535.104.05"',
                 T4, id="one card"),
    pytest.param('echo "NVIDIA H100, 580.65.06"; echo "Tesla T4, 580.65.06"', Card("NVIDIA H100", (580, 65, 6)),
                 id="two cards"),
    pytest.param('echo "warning: persistence"; echo "NVIDIA GeForce RTX 4090, 581.29"',
                 Card("NVIDIA GeForce RTX 4090", (581, 29)), id="Windows' driver under a warning"),
    pytest.param('echo "No devices were found"', None, id="no card"),
    pytest.param('echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9', None,
                 id="no driver"),
    pytest.param('echo "Tesla T4, 535.104.05"; exit 15', None, id="a list and a failure"),
    pytest.param('echo "Tesla T4, [N/A]"', None, id="no version"),
    pytest.param("head -c 3000 /dev/urandom", None, id="noise"),
    pytest.param("", None, id="nothing"),
    pytest.param('printf "\\033[31mTesla\\tT4\\377, 535.104.05\\n"', Card("[31mTesla T4", (535, 104, 5)), id="escapes"),
])
def test_a_card_by_nvidia_smi(tmp_path, script, expected):
    assert find_card(tmp_path, nvidia_smi(tmp_path / "bin", script + "\n")) == expected


@posix
def test_nvidia_smi_that_hangs_is_left_alone(tmp_path):
    path = nvidia_smi(tmp_path / "bin", f"echo $$ > {tmp_path}/id; exec sleep 300")
    started = time.monotonic()
    assert find_card(tmp_path, path, patience=1) is None
    assert time.monotonic() - started < 250
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)
    assert find_card(driver_files(tmp_path / "root", version=None), path, patience=1) == Card("Tesla T4", None)


@posix
def test_nvidia_smi_that_cannot_be_started(tmp_path):
    path = nvidia_smi(tmp_path / "bin", "")
    (tmp_path / "bin/nvidia-smi").write_text("#!/no/such/shell\n")
    assert find_card(tmp_path, path) is None


@posix
def test_wsl_keeps_nvidia_smi_off_the_path(tmp_path):
    nvidia_smi(tmp_path / "usr/lib/wsl/lib", 'echo "NVIDIA GeForce RTX 3060, 551.23"')
    assert find_card(tmp_path, search_path="") == Card("NVIDIA GeForce RTX 3060", (551, 23))


def test_no_card(tmp_path):
    assert find_card(tmp_path, search_path=str(tmp_path)) is None


# ---- what to do about it ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("driver", "expected"), [
    (None, "cu130"), ((580, 65, 6), "cu130"), ((595, 1), "cu130"), ((580, 12), "cu128"), ((575, 57, 8), "cu128"),
    ((550, 54, 14), "cu126"), ((525, 60, 13), "cu126"), ((520, 61, 5), "cu118"), ((450, 80, 2), "cu118")])
def test_the_build_for_a_driver(driver, expected):
    assert pip_command(driver).endswith(f"--index-url https://download.pytorch.org/whl/{expected}")


def test_a_driver_too_old_for_every_build():
    assert "pip" not in pip_command((440, 33)) and "580.65.06" in pip_command((440, 33))


@pytest.mark.parametrize(("card", "build", "complaint", "visible", "reason", "cure"), [
    pytest.param(T4, TorchBuild("2.13.0+cpu", None), "Torch not compiled with CUDA enabled", None,
                 "torch 2.13.0+cpu (a build without CUDA)", "/whl/cu126", id="CPU build"),
    pytest.param(T4, TorchBuild("2.14.1", "13.0"), "The NVIDIA driver on your system is too old", None,
                 "it needs driver 580.65.06 or newer", "/whl/cu126", id="old driver"),
    pytest.param(Card("K80", (470, 82, 1)), TorchBuild("2.9.1", "12.8"), "too old", None,
                 "it needs driver 525.60.13 or newer", "/whl/cu118", id="very old driver"),
    pytest.param(T4, TorchBuild("2.9.1", "12.8"), "Found no NVIDIA driver", "", "CUDA_VISIBLE_DEVICES is ''",
                 "unset it", id="hidden"),
    pytest.param(T4, TorchBuild("2.9.1", "12.8"), "No CUDA GPUs are available", "7",
                 "No CUDA GPUs are available, with CUDA_VISIBLE_DEVICES '7'", "name a card that is there",
                 id="no such"),
    pytest.param(Card("T4", (535, 1), device_files=False), TorchBuild("2.9.1", "12.8"), "Found no NVIDIA driver", None,
                 "there is no /dev/nvidia0 (Found no NVIDIA driver)", "docker run --gpus all", id="container"),
    pytest.param(Card("Tesla P100", (580, 82, 7)), TorchBuild("2.14.1", "13.0"), "CUDA error: no kernel image is", None,
                 "no kernel image", "/whl/cu126", id="old card"),
    pytest.param(Card("RTX 5090", (580, 82, 7)), TorchBuild("2.6.0", "12.4"), "CUDA error: no kernel image is", None,
                 "no kernel image", "/whl/cu130", id="card newer than torch"),
    pytest.param(Card("T4", None), TorchBuild("2.9.1", "12.8"), "CUDA unknown error", None, "CUDA unknown error",
                 "restart", id="something else"),
])
def test_why_a_card_is_not_used(card, build, complaint, visible, reason, cure):
    line = why_unused(card, build, complaint, visible)
    assert line.startswith(f"{card} is there, but {build} cannot use it: ") and "\n" not in line
    assert reason in line and cure in line


@pytest.mark.parametrize(("value", "expected"), [
    (None, False), ("", True), ("-1", True), (" ", True), ("-1,0", True), ("NoDevFiles", True), ("0", False),
    ("GPU-8932f937", False)])
def test_cards_hidden_by_the_environment(value, expected):
    assert hidden(value) is expected

"""ranks.py: which of torchrun's processes this is."""

import pytest

from sam_lora.errors import UserError
from sam_lora.ranks import Ranks, ranks_of_environment


@pytest.mark.parametrize(("environment", "expected"), [
    pytest.param({}, Ranks(0, 1, 0), id="no torchrun"),
    pytest.param({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Ranks(3, 4, 1), id="two machines"),
])
def test_which_process_this_is(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks_of_environment() == expected


@pytest.mark.parametrize("environment", [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_an_environment_that_torchrun_did_not_set(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK"):
        ranks_of_environment()


def test_only_the_first_process_prints(capsys):
    for ranks in (Ranks(0, 2), Ranks(1, 2)):
        ranks.say(f"process {ranks.rank}")
    assert capsys.readouterr().out == "process 0\n"

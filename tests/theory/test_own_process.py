"""A user's optimizer class runs in a process of its own."""

import os
import sys
import time

import pytest
import torch
from torch import nn

from smdtrack.theory.calibration import CannotRunError
from smdtrack.theory.own_process import check_reproducible, in_own_process


class WithSetting(torch.optim.Optimizer):
    """Keeps a setting in an attribute, not in its groups."""

    def __init__(self, params: object, lr: float = 0.1, kind: str = "plain") -> None:
        self.kind = kind
        super().__init__(params, {"lr": lr})  # type: ignore[arg-type]


def test_the_result_comes_back_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        print("a word of the optimizer's", flush=True)
        os.write(1, b"another one")
        return os.getpid()

    random_state = torch.get_rng_state()
    assert in_own_process(work) != os.getpid()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: 1 / 0, "it does not run on plain gradients: ZeroDivisionError: division by zero"),
        (lambda: sys.exit(3), "it does not run on plain gradients: SystemExit: 3"),
        (lambda: os._exit(3), "its calibration ended the process in which it ran"),
        (lambda: time.sleep(60), "its calibration took more than 0 s"),
        (lambda: torch.distributed.barrier(), "it does not run on plain gradients: ValueError: Default process group"),
    ],
)
def test_each_way_to_fail_is_a_reason(work: object, said: str) -> None:
    with pytest.raises(CannotRunError) as error:
        in_own_process(work, 0.4 if "more than" in said else 20)  # type: ignore[arg-type]
    assert str(error.value).startswith(said)


def test_a_setting_that_the_groups_do_not_hold_must_have_its_default() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    plain, other = WithSetting([weight]), WithSetting([weight], kind="other")
    check_reproducible(plain, plain.param_groups[0])
    with pytest.raises(CannotRunError) as error:
        check_reproducible(other, other.param_groups[0])
    assert str(error.value) == (
        "its constructor takes 'kind', which its parameter groups do not hold, so that it cannot be calibrated"
    )

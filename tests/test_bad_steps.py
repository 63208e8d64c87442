"""Bad steps in a row: how many are allowed, and what a good step resets."""

import pytest
import torch
from torch import nn

from config import load_config
from heads import build_standalone_head
from train.bad_steps import BadSteps, skippable_sgd


def bad_steps(max_in_a_row: int) -> BadSteps:
    head = build_standalone_head(load_config(overrides=["dataset=custom", "num_classes=3", "embedding_size=2"]))
    student = nn.Linear(2, 2)
    return BadSteps(
        skippable_sgd([*student.parameters()], 0.1, 0.9, 0.0), student, head, max_in_a_row, torch.device("cpu")
    )


@pytest.mark.parametrize("max_in_a_row", [0, 1, 3])
def test_a_run_ends_with_one_bad_step_more_than_max_bad_steps_in_a_row(max_in_a_row):
    """First as many as allowed, then a good step, then one more than allowed. On a CPU the count is known at once."""
    steps = bad_steps(max_in_a_row)
    gradient_norms = [torch.nan] * max_in_a_row + [1.0] + [torch.inf] * (max_in_a_row + 1)
    too_many = []
    for number, norm in enumerate(gradient_norms, start=1):
        steps.begin()
        steps.take_step(number, {"loss": torch.tensor(2.0)}, torch.tensor(norm))
        too_many.append(steps.too_many())
    assert too_many == [False] * (2 * max_in_a_row + 1) + [True]
    assert steps.total == 2 * max_in_a_row + 1
    message = f"the last {max_in_a_row + 1} steps was not finite, more than max_bad_steps = {max_in_a_row} in a row"
    assert message in str(steps.error(9)) and f"the last good one, {max_in_a_row + 1}, had" in str(steps.error(9))

"""The unmask rule: the PyTorch form against a plain loop, and the guarantee of the step budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.switch import VARIABLE, use_triton
from kernels.unmask import NEVER, NO_BOUND, Policies, unmask, unmask_torch
from tests.kernels.unmask_cases import expected, random_case

WIDTHS = st.integers(1, 64)


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    canvases=st.integers(1, 6),
    width=WIDTHS,
    stops=st.integers(0, 3),
    policies=st.booleans(),
)
def test_equals_the_rule_written_as_a_loop(seed: int, canvases: int, width: int, stops: int, policies: bool) -> None:
    case = random_case(seed, canvases, width, stops, policies)
    arguments = case.arguments()
    result = unmask_torch(*arguments)
    for row in range(canvases):
        want = expected(case, row)
        assert arguments[0][row].tolist() == want.canvas
        assert arguments[1][row].tolist() == want.masked
        assert int(result.masks_left[row]) == want.masks_left
        assert int(result.first_stop[row]) == want.first_stop
        assert bool(result.done[row]) == want.done


@pytest.mark.parametrize("width", range(1, 65))
def test_a_budget_is_a_guarantee_for_every_k(width: int) -> None:
    """One canvas per K from 1 to the width, all masked but the first: none has a mask left after its K steps."""
    budgets = torch.arange(1, width + 1)
    canvas = torch.full((width, width), 100)
    masked = torch.ones(width, width, dtype=torch.bool)
    masked[:, 0] = False
    draw = torch.Generator().manual_seed(width)
    length = torch.full((width,), width)
    steps_used = torch.zeros(width, dtype=torch.int64)
    for step in range(width):
        steps_used += masked.any(1)
        confidence = torch.rand(width, width, generator=draw)
        candidate = torch.randint(0, 50, (width, width), generator=draw)
        result = unmask(
            canvas,
            masked,
            candidate,
            confidence,
            length,
            (budgets - step).clamp(min=1),
            torch.full((width,), NEVER),
            torch.empty(width, 0, dtype=torch.int64),
        )
        assert torch.equal(result.masks_left, masked.sum(1))
    assert not masked.any()
    assert (steps_used <= budgets).all()
    # Without early commits the masks are spread over all K steps (there are width - 1 of them).
    assert torch.equal(steps_used, budgets.clamp(max=width - 1))
    assert (canvas[:, 1:] < 50).all()


@pytest.mark.parametrize("width", [1, 2, 9, 32, 64])
def test_a_budget_is_a_guarantee_where_tokens_are_taken_back(width: int) -> None:
    """Of everything that is settled half is taken back in every step but the last."""
    budgets = torch.arange(1, width + 1)
    canvas, masked = torch.full((width, width), 100), torch.ones(width, width, dtype=torch.bool)
    draw = torch.Generator().manual_seed(width)

    def uniform() -> torch.Tensor:
        return torch.rand(width, width, generator=draw)

    taken_back = 0
    for step in range(width):
        before = masked.clone()
        policies = Policies(uniform(), torch.full((width,), NO_BOUND), uniform(), torch.full((width,), 0.5), 100)
        result = unmask(
            canvas,
            masked,
            torch.randint(0, 50, (width, width), generator=draw),
            uniform(),
            torch.full((width,), width),
            (budgets - step).clamp(min=1),
            torch.full((width,), NEVER),
            torch.empty(width, 0, dtype=torch.int64),
            policies,
        )
        assert torch.equal(result.masks_left, masked.sum(1))
        assert (canvas[masked] == 100).all()
        taken_back += int((masked & ~before).sum())
        assert not masked[budgets <= step + 1].any()
    assert taken_back > 0 or width < 3
    assert not masked.any()


def test_mask_ids_in_the_text_are_text() -> None:
    """A committed token with the mask's id is not masked, and a masked slot's id does not matter."""
    canvas = torch.tensor([[100, 7, 100]])
    masked = torch.tensor([[False, True, False]])
    result = unmask(
        canvas,
        masked,
        torch.tensor([[1, 2, 3]]),
        torch.tensor([[0.9, 0.1, 0.9]]),
        torch.tensor([3]),
        torch.tensor([1]),
        torch.tensor([NEVER]),
        torch.tensor([[-1]]),
    )
    assert canvas.tolist() == [[100, 2, 100]]
    assert result.masks_left.tolist() == [0]
    assert result.done.tolist() == [True]


def test_the_switch_takes_torch_on_a_cpu_and_refuses_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(1)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not use_triton(tensor)
    monkeypatch.setenv(VARIABLE, "triton")
    assert use_triton(tensor)
    monkeypatch.setenv(VARIABLE, "torch")
    assert not use_triton(tensor)
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match="STEPDIAL_KERNELS is 'fast'; allowed: auto, triton, torch"):
        use_triton(tensor)

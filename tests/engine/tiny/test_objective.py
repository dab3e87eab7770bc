"""The training objective against contract 7.5, worked out by hand."""

from random import Random

import pytest
import torch

from engine.tiny.objective import CLEAN, Row, add_noise, clean_row, collate, draw_noise, visibility

PROMPT = [10, 200, 201]
EOS, MASK = 11, 100


def noisy_row(answer: list[int], block_length: int, offset: int = 0, seed: int = 0) -> Row:
    return add_noise(clean_row(PROMPT, answer), len(PROMPT), answer, block_length, offset, Random(seed))


def test_truth_table_of_the_contract() -> None:
    # The table of contract 7.5 for length 4 and block 2, columns n0..n3 then c0..c3; no prompt.
    table = """
        1 1 . . . . . .
        1 1 . . . . . .
        . . 1 1 1 1 . .
        . . 1 1 1 1 . .
        . . . . 1 . . .
        . . . . 1 1 . .
        . . . . 1 1 1 .
        . . . . 1 1 1 1
    """
    expected = torch.tensor([[cell == "1" for cell in line.split()] for line in table.split("\n") if line.strip()])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    limit = torch.tensor([[0, 0, 2, 2, 1, 2, 3, 4]])
    block = torch.tensor([[0, 0, 1, 1, CLEAN, CLEAN, CLEAN, CLEAN]])
    assert torch.equal(visibility(limit, block, positions)[0, 0], expected)


def test_rows_see_what_inference_sees() -> None:
    answer = [300, 301, 302, 303, 304, EOS]
    row = noisy_row(answer, block_length=4, offset=1)
    batch = collate([row, clean_row(PROMPT, [EOS])])
    assert batch.mask is not None
    mask = batch.mask[0, 0]
    clean = len(PROMPT) + len(answer)
    for query in range(clean):
        assert mask[query].nonzero().flatten().tolist() == list(range(query + 1))
    # Noisy blocks start at answer offsets 1 and 5, after three prompt tokens.
    for number, start in enumerate((4, 8)):
        own = range(clean + 4 * number, clean + 4 * number + 4)
        for query in own:
            assert mask[query].nonzero().flatten().tolist() == [*range(start), *own]
            assert row.positions[query] == start + query - own.start
    assert mask.any(dim=1).all()  # padding too sees something: no NaN


def test_ar_supervises_the_answer_and_its_eos_only() -> None:
    row = clean_row(PROMPT, [300, 301, EOS])
    assert row.ids == [10, 200, 201, 300, 301, EOS]
    assert row.target == [-1, -1, 300, 301, EOS, -1]
    assert row.weight == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("offset", [0, 2])
def test_last_block_is_filled_with_supervised_eos_in_the_noisy_half(offset: int) -> None:
    answer = [300, 301, 302, 303, EOS]
    supervised: set[int] = set()
    for seed in range(200):
        row = noisy_row(answer, 4, offset, seed)
        noisy = slice(len(PROMPT) + len(answer), None)
        assert len(row.ids[noisy]) % 4 == 0
        for position, token, target in zip(row.positions[noisy], row.ids[noisy], row.target[noisy], strict=True):
            at = position - len(PROMPT)
            truth = answer[at] if at < len(answer) else EOS
            assert (token, target) in {(MASK, truth), (truth, -1)}
            if target >= 0:
                supervised.add(at)
        assert row.target[: noisy.start] == clean_row(PROMPT, answer).target  # no AR loss past the first EOS
    assert supervised == set(range(offset, offset + 4 * -(-(len(answer) - offset) // 4)))


def test_prompt_is_never_masked_and_masks_weigh_one_over_their_probability() -> None:
    answer = [*range(300, 363), EOS]
    for seed in range(50):
        row = noisy_row(answer, 32, 0, seed)
        assert MASK not in row.ids[: len(PROMPT) + len(answer)]
        for at in range(2):
            block = slice(len(PROMPT) + len(answer) + 32 * at, len(PROMPT) + len(answer) + 32 * at + 32)
            masked = [weight for weight in row.weight[block] if weight]
            assert len(set(masked)) <= 1  # one noise level a block
            assert sum(token == MASK for token in row.ids[block]) == len(masked)
            if masked and masked[0] < 3:
                assert abs(len(masked) * masked[0] / 32 - 1) < 0.8


def test_block_lengths_and_offsets_vary() -> None:
    answer = [*range(300, 400), EOS]
    seen = set()
    for seed in range(100):
        row = draw_noise(clean_row(PROMPT, answer), len(PROMPT), answer, Random(seed))
        first = row.block.count(0)
        start = row.positions[len(PROMPT) + len(answer)] - len(PROMPT)
        assert start < first
        seen.add((first, start > 0))
    assert {length for length, _ in seen} == {4, 8, 16, 32}
    assert {moved for _, moved in seen} == {True, False}

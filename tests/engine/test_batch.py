"""The ragged batch says for every token where it stands, where its K/V goes and what it sees."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Segment, build_batch, padded_rows
from engine.model.linear import ProductRows

PAGE = 8


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    """Sequences on pages of their own, in no order."""
    count = draw(st.integers(1, 8))
    pages = iter(draw(st.permutations(range(1, 8 * 12 + 1))))
    made = []
    for _ in range(count):
        start, rows = draw(st.integers(0, 60)), draw(st.integers(1, 9))
        wanted = draw(st.lists(st.integers(0, rows - 1), unique=True).map(sorted))
        causal = draw(st.booleans())
        made.append(
            Segment(
                tokens=draw(st.lists(st.integers(0, 159), min_size=rows, max_size=rows)),
                start=start,
                causal=causal,
                drafted=not causal and draw(st.booleans()),
                wanted=wanted,
                pages=[next(pages) for _ in range(-(-(start + rows) // PAGE))],
            )
        )
    return made


@given(segments(), st.sampled_from([1, 2, 4]))
@settings(max_examples=40)
def test_every_segment_is_laid_out_as_it_was_asked_for(asked: list[Segment], heads_per_kv_head: int) -> None:
    batch = build_batch(asked, PAGE, 2 * heads_per_kv_head, 2, torch.float32)
    rows_of = _rows(asked, batch.positions.tolist(), batch.slots.tolist())
    reaches = _reaches(batch, heads_per_kv_head)
    wanted: list[int] = []
    drafts: list[int] = []
    for segment, rows in zip(asked, rows_of, strict=True):
        assert batch.token_ids[rows].tolist() == segment.tokens
        for offset, row in enumerate(rows):
            position = segment.start + offset
            keys = [segment.pages[at // PAGE] * PAGE + at % PAGE for at in range(segment.end)]
            reach = position + 1 if segment.causal else segment.end
            assert reaches[row] == keys[:reach]
        wanted += [rows[offset] for offset in segment.wanted]
        drafts += rows if segment.drafted else []
    assert batch.wanted == len(wanted)
    assert batch.logit_rows[: batch.wanted].tolist() == wanted
    assert batch.draft_count == len(drafts)
    if batch.draft_rows is not None:
        assert sorted(batch.draft_rows[: batch.draft_count].tolist()) == sorted(drafts)
    assert batch.query_tokens == sum(len(segment.tokens) for segment in asked)
    assert batch.context_tokens == sum(segment.end for segment in asked)
    assert batch.last_position == max(segment.end for segment in asked) - 1


@given(segments())
@settings(max_examples=30)
def test_padding_writes_to_the_null_page_only_and_products_have_even_shapes(asked: list[Segment]) -> None:
    batch = build_batch(asked, PAGE, 4, 2, torch.float32)
    padding = batch.slots[batch.query_tokens :]
    assert bool((padding < PAGE).all())
    assert bool((batch.slots[: batch.query_tokens] >= PAGE).all())
    assert len(set(batch.slots[: batch.query_tokens].tolist())) == batch.query_tokens
    for rows in (batch.token_ids, batch.logit_rows, batch.draft_rows):
        if rows is not None:
            assert len(rows) % 8 == 0
            assert len(rows) >= 8
    assert int(batch.logit_rows.max()) < len(batch.token_ids)


@given(st.integers(1, 5000), st.sampled_from([1, 2, 4, 8]))
def test_products_with_code_for_each_number_of_rows_see_few_numbers(rows: int, fewest: int) -> None:
    padded = padded_rows(rows, ProductRows(fewest, compiled=True))
    assert max(rows, fewest) <= padded <= max(rows + rows // 16, fewest)
    assert padded_rows(rows, ProductRows(fewest)) == max(rows, fewest)


@given(st.integers(1, 5000))
def test_products_whose_rows_were_not_tried_are_padded_to_eights_with_code_for_each_number_or_not(rows: int) -> None:
    padded = padded_rows(rows, ProductRows(compiled=True))
    assert padded % 8 == 0
    assert rows <= padded_rows(rows) <= padded <= padded_rows(rows + rows // 16)


def test_the_code_for_all_batches_fits_where_it_is_kept() -> None:
    products, kept = 5, 1024
    numbers = {padded_rows(rows, ProductRows(1, compiled=True)) for rows in range(1, 4097)}
    assert products * len(numbers) <= kept


def _rows(asked: list[Segment], positions: list[int], slots: list[int]) -> list[list[int]]:
    """Row of every token of every segment, found by its K/V slot, which no other token has."""
    row_of = {slot: row for row, slot in enumerate(slots) if slot >= PAGE}
    found = []
    for segment in asked:
        rows = [
            row_of[segment.pages[position // PAGE] * PAGE + position % PAGE]
            for position in range(segment.start, segment.end)
        ]
        assert [positions[row] for row in rows] == list(range(segment.start, segment.end))
        found.append(rows)
    return found


def _reaches(batch: object, heads_per_kv_head: int) -> dict[int, list[int]]:
    """The K/V slots that each row sees, the same for every head."""
    seen: dict[int, list[int]] = {}
    for group in batch.groups:  # type: ignore[attr-defined]
        keys = group.key_slots.view(group.sequences, -1)
        # One mask row stands for all where they have the same reach.
        mask = group.mask.expand(-1, -1, max(group.mask.shape[2], heads_per_kv_head * group.rows), -1)
        for place in range(group.sequences):
            for row in range(group.rows):
                masks = [mask[place, 0, head * group.rows + row] for head in range(heads_per_kv_head)]
                visible = [keys[place][mask == 0].tolist() for mask in masks]
                assert all(slots == visible[0] for slots in visible)
                seen[group.start + place * group.rows + row] = visible[0]
    return seen

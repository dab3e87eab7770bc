"""The batch for an accelerator says the same of every token as the segments do, and travels as one buffer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Segment, build_batch
from engine.device_batch import Staging, build_device_batch, lay_out, tensors_of, with_tensors
from engine.packing import pack, tensors_in, unpack
from kernels.reach_work import ReachShape, SplitRule, WorkSizes, tiles_for
from tests.engine.test_batch import PAGE, segments
from tests.kernels.isolated import interpreted

RULE = SplitRule(keys=64)


def shape(heads_per_kv_head: int, kv_heads: int) -> ReachShape:
    return ReachShape(heads_per_kv_head, kv_heads, PAGE, tiles_for(torch.bfloat16), RULE)


def test_the_model_on_its_kernels_equals_the_model_on_pytorch() -> None:
    interpreted(Path(__file__).parent / "interpreted_forward.py", least=2)


@given(segments(), st.sampled_from([1, 2, 4]))
@settings(max_examples=40)
def test_every_segment_is_laid_out_as_it_was_asked_for(asked: list[Segment], heads_per_kv_head: int) -> None:
    batch = build_device_batch(asked, shape(heads_per_kv_head, 2), torch.bfloat16, torch.device("cpu"))
    assert batch.work is not None
    row = 0
    wanted: list[int] = []
    drafts: list[int] = []
    for segment in asked:
        rows = range(row, row + len(segment.tokens))
        positions = range(segment.start, segment.end)
        assert batch.token_ids[rows].tolist() == segment.tokens
        assert batch.positions[rows].tolist() == list(positions)
        assert batch.slots[rows].tolist() == [segment.pages[at // PAGE] * PAGE + at % PAGE for at in positions]
        assert batch.work.reach[rows].tolist() == [at + 1 if segment.causal else segment.end for at in positions]
        wanted += [row + offset for offset in segment.wanted]
        drafts += rows if segment.drafted else []
        row += len(rows)
    assert len(batch.token_ids) % 8 == 0
    assert (batch.slots[row:] < PAGE).all()
    assert not batch.work.reach[row:].any()
    assert batch.logit_rows[: batch.wanted].tolist() == wanted
    assert batch.draft_rows is None
    assert batch.draft_mask is not None
    assert batch.draft_mask.dtype is torch.bfloat16
    assert batch.draft_mask[:, 0].nonzero()[:, 0].tolist() == drafts
    assert batch.draft_mask.sum() == len(drafts)
    on_cpu = build_batch(asked, PAGE, heads_per_kv_head, 1, torch.float32)
    for count in ("wanted", "draft_count", "last_position", "query_tokens", "context_tokens"):
        assert getattr(batch, count) == getattr(on_cpu, count)


@given(segments(), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=20)
def test_what_lands_on_a_device_is_the_batch_whatever_was_there(asked: list[Segment], dtype: torch.dtype) -> None:
    layout = lay_out(asked, shape(2, 2))
    forms = layout.forms(dtype)
    clean, used = Staging(forms, pinned=False), Staging(forms, pinned=False)
    clean.buffer.zero_()
    used.buffer.fill_(0x55)
    layout.write(clean)
    before = layout.batch(clean.tensors)
    buffer = torch.full_like(used.buffer, 0x55)
    layout.land(used, buffer)
    landed = layout.batch(tensors_in(buffer, forms))
    assert before.work is not None
    assert landed.work is not None
    held = sum(-(-one.end // PAGE) for one in asked)
    assert torch.equal(landed.work.pages[:held], before.work.pages[:held])
    assert before.draft_mask is not None
    assert landed.draft_mask is not None
    assert before.draft_mask.dtype is landed.draft_mask.dtype is dtype
    pairs = [(before.draft_mask, landed.draft_mask)]
    pairs += [(getattr(before, name), getattr(landed, name)) for name in ("token_ids", "positions", "slots")]
    pairs += zip(before.work.arrays()[:3], landed.work.arrays()[:3], strict=True)
    for tensor, other in pairs:
        assert torch.equal(tensor, other)
        assert other.storage_offset() * other.element_size() % 16 == 0


class Event:
    """Of a device that reads a staging buffer whenever it likes until it says that it has."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.log: list[tuple[str, torch.Tensor]] = []

    def synchronize(self) -> None:
        self.log.append(("waited", self.staging.buffer.clone()))

    def record(self) -> None:
        self.log.append(("recorded", self.staging.buffer.clone()))


def test_nothing_is_written_where_a_copy_may_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (
        lay_out([Segment([token] * 9, 100, False, True, [0], list(range(1, 15)))], shape(2, 2)) for token in (1, 2)
    )
    staging = Staging(first.forms(torch.bfloat16), pinned=False)
    staging.buffer.zero_()
    buffer = torch.zeros_like(staging.buffer)
    event = Event(staging)
    monkeypatch.setattr(staging, "_copied", event)
    first.land(staging, buffer)
    second.land(staging, buffer)
    assert [word for word, _ in event.log] == ["waited", "recorded", "waited", "recorded"]
    assert not event.log[0][1].any()
    assert torch.equal(event.log[2][1], event.log[1][1]), "the wait comes before the first byte"
    assert not torch.equal(event.log[3][1], event.log[1][1])


@given(segments())
@settings(max_examples=20)
def test_one_buffer_holds_a_batch_of_attention_groups(asked: list[Segment]) -> None:
    batch = build_batch(asked, PAGE, 4, 2, torch.bfloat16)
    before = [tensor.clone() for tensor in tensors_of(batch)]
    buffer = pack(before)
    again = with_tensors(batch, unpack(buffer, before))
    for tensor, other in zip(tensors_of(again), before, strict=True):
        assert tensor.dtype is other.dtype
        assert torch.equal(tensor, other)
        assert tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        assert tensor.storage_offset() * tensor.element_size() % 16 == 0


def test_batches_of_a_bucket_have_the_same_shapes() -> None:
    buckets = [
        WorkSizes(items=2, merges=0, pages=32, partial_rows=0),
        WorkSizes(items=32, merges=32, pages=32, partial_rows=128),
    ]
    small = [Segment([1], 100, True, False, [0], [3] * 13)]
    large = [Segment([1] * 9, 100, False, True, [0], list(range(1, 15))), Segment([2] * 7, 0, True, False, [], [20])]

    layouts = [lay_out(asked, shape(4, 1), 24, buckets) for asked in (small, large)]
    assert layouts[0].forms(torch.bfloat16) == layouts[1].forms(torch.bfloat16)
    assert all(layout.cut.sizes == buckets[1] for layout in layouts)
    with pytest.raises(ValueError, match="batch has 16 tokens; its bucket has 8"):
        lay_out(large, shape(4, 1), 8, buckets)
    assert lay_out(large, shape(4, 1), 24, buckets[:1]).cut.sizes not in buckets

"""Forwards in the buckets of graphs, in Triton's interpreter. Run by `test_graphs.py` in a process of its own.

A recorder that hands back the call stands in for CUDA's: what is run again is the call as it was recorded, on the
buffer that batches are copied into, with the numbers that the host knew then.
"""

from __future__ import annotations

import pytest
import torch

from engine import graphs as graphs_module
from engine.batch import Segment
from engine.graphs import TOKENS, Bucket, Call
from tests.engine.interpreted_forward import executor, segment
from tests.oracle.random_model import PAGE


def again(call: Call) -> Call:
    return call


def batches() -> list[list[Segment]]:
    """Some that share a bucket, with and without splits, drafts and prompts."""
    draw = torch.Generator().manual_seed(4)
    first, second, third = [3, 9, 1, 7, 5], [2, 8], [6]
    return [
        [segment(draw, 0, 140, True, False, first), segment(draw, 0, 31, True, False, second)],
        [segment(draw, 140, 8, False, True, first), segment(draw, 31, 1, True, False, second)],
        [segment(draw, 31, 6, False, True, second), segment(draw, 0, 5, True, False, third)],
        [segment(draw, 140, 8, True, False, first), segment(draw, 32, 3, True, False, second)],
        [segment(draw, 5, 2, True, False, third)],
    ]


def test_forwards_in_graphs_equal_those_without() -> None:
    plain, recorded = executor(torch.float32, layers=1), executor(torch.float32, again, layers=1)
    assert recorded.graphs is not None
    for segments in batches():
        batch = recorded.batch(segments)
        before = recorded.graphs.replays
        got = recorded.run(batch)
        assert recorded.graphs.replays - before == 1
        assert len(batch.token_ids) in TOKENS
        torch.testing.assert_close(got, plain.run(plain.batch(segments)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(recorded.kv[:, PAGE:], plain.kv[:, PAGE:], atol=1e-5, rtol=1e-5)


def test_a_batch_that_no_graph_takes_is_run_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "TOKENS", TOKENS[:2])
    plain, recorded = executor(torch.float32, layers=1), executor(torch.float32, again, layers=1)
    assert recorded.graphs is not None
    draw = torch.Generator().manual_seed(4)
    segments = [segment(draw, 0, TOKENS[1] + 1, True, False, [3])]
    got = recorded.run(recorded.batch(segments))
    assert recorded.graphs.replays == 0
    torch.testing.assert_close(got, plain.run(plain.batch(segments)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("drafted", [False, True])
def test_a_batch_is_in_the_bucket_of_what_it_needs(drafted: bool) -> None:
    graphs = executor(torch.float32, again).graphs
    assert graphs is not None
    for start, split in ((0, False), (120, True)):
        batch = graphs.batch([Segment([1] * 9, start, False, drafted, [], list(range(1, 9)))])
        assert batch is not None
        assert batch.work is not None
        assert batch.work.sizes == Bucket(16, split, drafted).sizes
        assert (batch.draft_count > 0) is drafted


def test_what_no_bucket_holds_is_laid_out_as_ever() -> None:
    graphs = executor(torch.float32, again).graphs
    assert graphs is not None
    assert graphs.batch([Segment([1] * 513, 0, True, False, [], list(range(1, 20)))]) is None
    pages = [1] * 600
    # One token each, that sees 512 pages: more pages than a bucket has.
    assert graphs.batch([Segment([1], 512 * 32 - 1, True, False, [], pages)] * 17) is None

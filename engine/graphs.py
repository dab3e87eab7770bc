"""The model's forward as CUDA graphs: recorded once for every bucket of shapes, then replayed by one launch.

A forward launches several kernels a layer; one by one that takes the host milliseconds, as long as a forward of a few
canvases takes the device. One of more than `TOKENS` keeps the device busy for longer than that: the host is ahead of it
anyway, and such forwards are launched kernel by kernel.

A batch is padded to the next number of tokens, and its work list to sizes that depend on that number alone. Its bytes
are copied into the graph's own buffer, so that the graph finds every batch at the same addresses. Tokens are chosen
from the result outside the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, product
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from engine.batch import Segment
from engine.device_batch import Layout, Staging, lay_out
from engine.packing import size_of, tensors_in
from kernels.reach_work import PLACES, WorkSizes

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

    from engine.batch import ForwardBatch
    from engine.model.transformer import Transformer
    from kernels.reach_work import ReachShape

Result = TypeVar("Result")
Call = Callable[[], Tensor]
Record = Callable[[Call], Call]
"""Turns a call on tensors at fixed addresses into one that does the same to whatever lies there by then."""

TOKENS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Of the buckets: as many as a forward may have that takes about as long as reading the weights, so that padding costs
little."""
MOST_PAGES = 8192
"""Pages of all sequences in a batch: 32 KiB of its copy."""
SPLIT_ROWS = 2048
"""Rows of partial results where contexts are split: as many splits as there are places for them need about a half."""


STAGINGS = 4
"""Of each bucket: batches whose copies may be under way, as forwards are run in a row."""


class Bucket(NamedTuple):
    """What a graph is recorded for.

    Attributes:
        tokens: rows of the batch. split: whether contexts may be split, so that a second launch merges the parts.
        drafted: whether the draft adapter runs.
    """

    tokens: int
    split: bool
    drafted: bool

    @property
    def sizes(self) -> WorkSizes:
        """Of the work list: every row may be an item of its own, and splits are as many as programs find places."""
        merges, more, partial_rows = (self.tokens, PLACES, SPLIT_ROWS) if self.split else (0, 0, 0)
        return WorkSizes(self.tokens + more, merges, MOST_PAGES, partial_rows)


class _Graph:
    """A recorded forward, and where its batches lie.

    Attributes:
        buffer: uint8, the bytes of its batch's tensors.
    """

    def __init__(self, first: Layout, model: Transformer, kv: Tensor, record: Record) -> None:
        """Records the model's forward of a batch."""
        forms = first.forms(model.dtype)
        self.buffer = torch.zeros(size_of(forms), dtype=torch.uint8, device=kv.device)
        self._tensors = tensors_in(self.buffer, forms)
        self._stagings = cycle([Staging(forms, kv.is_cuda) for _ in range(STAGINGS)])
        batch = self.land(first)
        self.replay = record(lambda: model.forward(batch, kv))

    def land(self, layout: Layout) -> ForwardBatch:
        """Copies a batch of the bucket to where the graph reads it; the host does not wait for that."""
        layout.land(next(self._stagings), self.buffer)
        return layout.batch(self._tensors)


class ForwardGraphs:
    """The graphs of one model and its K/V, all recorded when it is made: by all ranks of a group at once, with NCCL
    between them, and each rank replays its own.

    Attributes:
        replays: forwards that were replayed so far.
    """

    def __init__(self, model: Transformer, kv: Tensor, shape: ReachShape, record: Record) -> None:
        self.model = model
        self.kv = kv
        self.shape = shape
        self.replays = 0
        self._sizes = {tokens: [Bucket(tokens, split, False).sizes for split in (False, True)] for tokens in TOKENS}
        drafts = (False,) if model.adapter is None else (False, True)
        self._graphs: dict[Bucket, _Graph] = {}
        try:
            # The largest first, whose memory the others use again.
            for tokens, split, drafted in product(reversed(TOKENS), (True, False), drafts):
                bucket = Bucket(tokens, split, drafted)
                self._graphs[bucket] = self._recorded(bucket, record)
        except BaseException:
            # Whoever holds the error would hold them too, and NCCL does not end before they are gone.
            self._graphs.clear()
            raise

    def batch(self, segments: Sequence[Segment]) -> ForwardBatch | None:
        """Lays the segments out in the buffer of a graph; the next forward must be theirs. None where none fits them.

        The host does not wait for the device.
        """
        count = sum(len(segment.tokens) for segment in segments)
        tokens = next((tokens for tokens in TOKENS if tokens >= count), None)
        if tokens is None:
            return None
        sizes = self._sizes[tokens]
        layout = lay_out(segments, self.shape, tokens, sizes)
        if layout.cut.sizes not in sizes:
            return None
        bucket = Bucket(tokens, layout.cut.sizes.merges > 0, layout.draft_count > 0 and self.model.adapter is not None)
        with torch.inference_mode():
            return self._graphs[bucket].land(layout)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """As `Transformer.forward`; of a batch that was laid out here, by its graph.

        What a graph returned is overwritten when it is replayed the next time.
        """
        graph = self._graphs.get(self._bucket(batch))
        if graph is None or graph.buffer.data_ptr() != batch.token_ids.data_ptr():
            return self.model.forward(batch, self.kv)
        self.replays += 1
        return graph.replay()

    def _bucket(self, batch: ForwardBatch) -> Bucket:
        """The one that a batch with its sizes is in."""
        split = batch.work is not None and len(batch.work.merges) > 0
        return Bucket(len(batch.token_ids), split, batch.draft_count > 0 and self.model.adapter is not None)

    def _recorded(self, bucket: Bucket, record: Record) -> _Graph:
        # A token in the null page, which nobody reads.
        nobody = Segment([0], 0, True, bucket.drafted, [], [0])
        layout = lay_out([nobody], self.shape, bucket.tokens, [bucket.sizes])
        with torch.inference_mode():
            return _Graph(layout, self.model, self.kv, record)


class CudaRecorder:
    """Records calls as CUDA graphs that share their memory: only the results stay, and one graph runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> Call:
        """The call as a graph. Raises what `recorded` raises."""
        graph, result = recorded(call, self._pool)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def recorded(call: Callable[[], Result], pool: _POOL_HANDLE | None = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A CUDA graph of the call, and the tensors that every replay writes its result to.

    The call runs twice before, which compiles its kernels and sets up libraries. `pool`: memory that it shares.

    Raises what the recording raises, most often because something in the call waits for the device.
    """
    call()
    call()
    graph = torch.cuda.CUDAGraph()
    # Waits for the device first.
    with torch.cuda.graph(graph, pool=pool):
        result = call()
    return graph, result

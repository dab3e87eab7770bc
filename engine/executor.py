"""Runs batches: owns one rank's weights and K/V tensor. One process, one device.

With several ranks, rank 0's executor tells the others every batch that it lays out (`engine/group/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.batch import Segment, build_batch
from engine.decoding.head import head_choice
from engine.device_batch import build_device_batch, on_device
from engine.graphs import ForwardGraphs
from engine.group.flat_asked import encode_asked
from engine.group.flat_batch import encode_segments
from engine.group.wire import Kind, number
from kernels.reach_work import ReachShape, SplitRule, tiles_for
from kernels.switch import use_triton

if TYPE_CHECKING:
    from engine.batch import ForwardBatch
    from engine.decoding.choice import Choice
    from engine.decoding.head import Asked
    from engine.decoding.unmask import AnyCanvases, Drafting
    from engine.graphs import Record
    from engine.group.leader import Group
    from engine.model.transformer import Transformer


class Executor:
    """The model with its K/V memory.

    Attributes:
        keeps_logits: whether forwards are `run` and give logits, as on a CPU; else `choose` never holds them.
        kv: `[layers, slots, 2, kv_heads, head_dim]`, the heads of this rank; slots = pages * page_size, page 0 is the
            null page.
        on_kernels: whether batches are laid out for the Triton kernels, and so run on them (`kernels/switch.py`).
        group: the other ranks, for rank 0 of several. splits: how reach attention's kernel cuts long contexts.
        graphs: of the forward, once they were recorded (`engine/graphs.py`).
    """

    def __init__(
        self,
        model: Transformer,
        pages: int,
        page_size: int,
        group: Group | None = None,
        splits: SplitRule | None = None,
    ) -> None:
        config = model.config
        self.model = model
        self.group = group
        self.page_size = page_size
        self.keeps_logits = not model.head_by_kernels
        self.splits = splits or SplitRule()
        self.on_kernels = use_triton(model.embedding)
        # Zeroed, because keys beyond a row's reach are multiplied by a weight of zero, which must stay zero.
        self.kv = torch.zeros(
            config.num_layers,
            pages * page_size,
            2,
            config.num_kv_heads,
            config.head_dim,
            dtype=model.dtype,
            device=model.device,
        )
        self.graphs: ForwardGraphs | None = None

    @cached_property
    def shape(self) -> ReachShape:
        """What reach attention's kernel has to know of the model."""
        config = self.model.config
        heads, kv_heads = config.num_heads // config.num_kv_heads, config.num_kv_heads
        return ReachShape(heads, kv_heads, self.page_size, tiles_for(self.model.dtype), self.splits)

    def record_graphs(self, record: Record) -> None:
        """Records the forward's graphs, on the kernels; by all ranks of a group at once, who have met.

        Raises RankFailed when another rank ended meanwhile, and what the recording raises.
        """
        with self.naming_failed_ranks():
            self.graphs = ForwardGraphs(self.model, self.kv, self.shape, record)

    def batch(self, segments: list[Segment]) -> ForwardBatch:
        """Lays out the next forward, on the model's device; the next call must be `choose` or `denoise`, or `run` where
        logits are kept, because the other ranks begin at once.

        Raises RankFailed when one of them is gone.
        """
        return self._laid_out(segments, Kind.STEP)

    def _laid_out(self, segments: list[Segment], kind: Kind) -> ForwardBatch:
        if self.group is not None:
            self.group.tell(kind, encode_segments(segments))
        if self.graphs is not None and (laid_out := self.graphs.batch(segments)) is not None:
            return laid_out
        config, dtype = self.model.config, self.model.dtype
        if self.on_kernels:
            return build_device_batch(segments, self.shape, dtype, self.kv.device)
        heads, kv_heads = config.num_heads, config.num_kv_heads
        batch = build_batch(segments, self.page_size, heads, kv_heads, dtype, self.model.rows)
        return on_device(batch, self.kv.device)

    def run(self, batch: ForwardBatch) -> Tensor:
        """One forward; returns float32 logits `[wanted, vocab]` in the order the segments asked for them.

        Raises RankFailed when another rank ended meanwhile.
        """
        with self.naming_failed_ranks():
            return self._run(batch)

    def choose(self, batch: ForwardBatch, ask: Callable[[], Asked]) -> Choice:
        """One forward, and a token for every wanted row without their logits, in the order of `run`.

        `ask`: called while the device runs the forward; gives what the rows are asked, on the CPU. Raises RankFailed
        when another rank ended meanwhile.
        """
        with self.naming_failed_ranks(), torch.inference_mode():
            hidden = self._forward(batch)
            asked = self._told(ask())
            return head_choice(self.model, hidden, batch.logit_rows[: batch.wanted], asked)

    def denoise(
        self, batch: ForwardBatch, begin: Callable[[], Drafting[AnyCanvases]], steps: int
    ) -> Drafting[AnyCanvases]:
        """So many steps of the canvases, which are all of the batch; each sees what the one before has committed.

        `begin` is called while the device runs the first forward; what it asks is on the CPU, and moved. The host waits
        for none of the steps; rows with top-k or top-p are fetched, so they have one. Raises RankFailed as `choose`.
        """
        with self.naming_failed_ranks(), torch.inference_mode():
            hidden = self._forward(batch)
            drafting = begin()
            drafting.asked = self._told(drafting.asked)
            self._commit(batch, drafting, hidden)
            self._denoise_on(batch, drafting, steps - 1)
        return drafting

    def denoise_on(self, batch: ForwardBatch, drafting: Drafting[AnyCanvases], steps: int) -> None:
        """So many more steps, whether or not the host has seen what the ones before have committed."""
        with self.naming_failed_ranks(), torch.inference_mode():
            self._denoise_on(batch, drafting, steps)

    def look(self, segments: list[Segment], ask: Callable[[], Asked], tokens: Tensor) -> Choice:
        """A forward over tokens that the device has just chosen and the host has not seen: it waits for nothing, and
        lays the forward out while the device runs the one before.

        Not for rows with top-k or top-p. Raises RankFailed as `choose`.

        Args:
            segments: of their tokens only the number counts.
            ask: gives what the rows are asked, on the CPU; a token to judge is that of the row after it.
            tokens: int64, of all segments, one after the other, on the device; of another rank than 0 any.
        """
        with self.naming_failed_ranks(), torch.inference_mode():
            batch = self._laid_out(segments, Kind.LOOK)
            batch.token_ids[: batch.query_tokens] = self.model.parallel.broadcast(tokens)
            hidden = self._forward(batch)
            asked = self._told(ask())
            rows = batch.logit_rows[: batch.wanted]
            given = asked.rules.given
            following = batch.token_ids[(rows + 1).clamp(max=len(batch.token_ids) - 1)]
            asked.rules.given = torch.where(given >= 0, following, given)
            return head_choice(self.model, hidden, rows, asked)

    def close(self) -> None:
        """Ends the other ranks; nothing can be run after it."""
        # NCCL does not end before the graphs that it is recorded in.
        self.graphs = None
        if self.group is not None:
            self.group.close()

    def _run(self, batch: ForwardBatch) -> Tensor:
        with torch.inference_mode():
            hidden = self._forward(batch)
            if batch.wanted == 0:
                vocabulary = self.model.config.vocab_size * self.model.parallel.shard.size
                return hidden.new_empty(0, vocabulary, dtype=torch.float32)
            # Tokens are chosen from logits on the CPU (`keeps_logits`).
            return self.model.logits(hidden, batch.logit_rows)[: batch.wanted].float().cpu()

    def _told(self, asked: Asked) -> Asked:
        """What the rows are asked, on the device; the other ranks hear of it."""
        if self.group is not None:
            self.group.tell(Kind.ASK, encode_asked(asked))
        return asked.to(self.kv.device)

    def _denoise_on(self, batch: ForwardBatch, drafting: Drafting[AnyCanvases], steps: int) -> None:
        if self.group is not None and steps:
            self.group.tell(Kind.AGAIN, number(steps))
        rows = batch.logit_rows[: batch.wanted]
        for _ in range(steps):
            batch.token_ids[rows] = self.model.parallel.broadcast(drafting.canvases.next_step())
            drafting.asked.next_step()
            self._commit(batch, drafting, self._forward(batch))

    def _commit(self, batch: ForwardBatch, drafting: Drafting[AnyCanvases], hidden: Tensor) -> None:
        rows = batch.logit_rows[: batch.wanted]
        drafting.canvases.commit(head_choice(self.model, hidden, rows, drafting.asked))

    def _forward(self, batch: ForwardBatch) -> Tensor:
        graphs = self.graphs
        return self.model.forward(batch, self.kv) if graphs is None else graphs.forward(batch)

    @contextmanager
    def naming_failed_ranks(self) -> Iterator[None]:
        """Raises RankFailed instead of what a collective says when a rank has ended."""
        try:
            yield
        except RuntimeError as error:
            failure = None if self.group is None else self.group.known_failure()
            if failure is None:
                raise
            raise failure from error


def page_count(
    kv_tokens: int | None, page_size: int, bytes_per_token: int, free_bytes: int, fraction: float, most_tokens: int
) -> int:
    """Pages to allocate, the null page included: asked for, or what a share of the free memory holds."""
    tokens = kv_tokens if kv_tokens is not None else min(int(free_bytes * fraction / bytes_per_token), most_tokens)
    return max(-(-tokens // page_size), 1) + 1

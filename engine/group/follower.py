"""What a rank other than 0 does for each forward: its part of what rank 0 runs, in the same order.

What it makes of the tokens is rank 0's to use, which has this rank's part by then. Canvases are rank 0's alone: where a
step follows without the host, their tokens come from its device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.decoding.unmask import Drafting
from engine.group.flat_asked import decode_asked
from engine.group.flat_batch import decode_segments
from engine.group.wire import Kind, read_number

if TYPE_CHECKING:
    from torch import Tensor

    from engine.batch import ForwardBatch
    from engine.decoding.choice import Choice
    from engine.decoding.head import Asked
    from engine.executor import Executor
    from engine.group.wire import Channel


class Elsewhere:
    """Canvases that rank 0 has."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._slots = slots
        self._device = device

    def commit(self, choice: Choice) -> None:
        """Rank 0 does."""

    def next_step(self) -> Tensor:
        """Where rank 0's tokens arrive (`TensorParallel.broadcast`), int64 `[slots]`; what is in it means nothing."""
        return torch.empty(self._slots, dtype=torch.int64, device=self._device)


class Follower:
    """Runs what rank 0 says on `channel`, on this rank's executor."""

    def __init__(self, executor: Executor, channel: Channel) -> None:
        self._executor = executor
        self._channel = channel
        self._last: tuple[ForwardBatch, Drafting[Elsewhere]] | None = None

    def follow(self) -> None:
        """One message with what belongs to it; waits for it without using the CPU.

        Raises EOFError when rank 0 is gone.
        """
        executor = self._executor
        kind, payload = self._channel.receive()
        if kind is Kind.AGAIN and self._last is not None:
            executor.denoise_on(*self._last, read_number(payload))
            return
        self._last = None
        if kind is Kind.LOOK:
            segments = decode_segments(payload)
            count = sum(len(segment.tokens) for segment in segments)
            executor.look(segments, self._asked, Elsewhere(count, executor.kv.device).next_step())
            return
        if kind is not Kind.STEP:
            raise RuntimeError(f"rank 0 said {kind.name} out of turn")
        batch = executor.batch(decode_segments(payload))
        if executor.keeps_logits:
            executor.run(batch)
        else:
            # If it is followed by more of the same, it was the first step of drafts.
            canvases = Elsewhere(batch.wanted, executor.kv.device)
            self._last = batch, executor.denoise(batch, lambda: Drafting(canvases, self._asked()), 1)

    def _asked(self) -> Asked:
        return decode_asked(self._channel.expect(Kind.ASK))

"""What the ranks of a group say to each other besides tensors: messages over a socket."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.model.parallel import Backend

_HEADER = struct.Struct("<qq")
"""Kind of a message and the bytes that follow."""


class Kind(IntEnum):
    """What a message says; the payload in brackets."""

    JOIN = 1  # worker: here I am [rank, int64]
    SPEC = 2  # rank 0: what to load [RankSpec as JSON]
    LOADED = 3  # worker: the weights are there []
    MEMORY = 4  # rank 0: allocate K/V [pages, int64]
    READY = 5  # worker: K/V is there []
    MEET = 6  # rank 0: connect to the other ranks, then wait for forwards []
    STEP = 7  # rank 0: run this [segments, int64]
    FAILED = 8  # worker: why it ends [text]
    ASK = 9  # rank 0, after STEP or LOOK where no logits are kept: what of each row is wanted [rules, `flat_asked.py`]
    AGAIN = 10  # rank 0: run the last batch so many times more, its canvases' tokens from rank 0's device [int64]
    LOOK = 11  # rank 0: as STEP, but all tokens are those of rank 0's device [segments, int64]


@dataclass(frozen=True, slots=True)
class RankSpec:
    """What every rank of a group needs to know to load its part.

    Attributes:
        path: checkpoint directory. dtype: torch's name of the arithmetic type. threads: torch threads of each rank;
            the same number, because a batch is padded by it. device: `cpu` or `cuda`. store: file at which the ranks
            meet. quantization, batch_invariant, narrow_products, cuda_graphs: as in `EngineConfig`.
    """

    path: str
    size: int
    dtype: str
    threads: int
    backend: Backend
    device: str
    store: str
    quantization: str = "none"
    batch_invariant: bool = False
    narrow_products: bool = False
    cuda_graphs: bool = False

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_bytes(data: bytes | bytearray) -> RankSpec:
        return RankSpec(**json.loads(data))


class Channel:
    """One end of the socket between rank 0 and a worker."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def send(self, kind: Kind, payload: bytes | memoryview = b"") -> None:
        """Sends one message. Raises OSError when the other end is gone."""
        self.socket.sendall(_HEADER.pack(kind, len(payload)))
        if len(payload):
            self.socket.sendall(payload)

    def receive(self) -> tuple[Kind, bytearray]:
        """Waits for the next message, without using the CPU. Raises EOFError when the other end is gone."""
        kind, size = _HEADER.unpack(self._read(_HEADER.size))
        return Kind(kind), self._read(size)

    def expect(self, wanted: Kind) -> bytearray:
        """The payload of the next message. Raises RuntimeError if it is of another kind, EOFError as `receive`."""
        kind, payload = self.receive()
        if kind is not wanted:
            raise RuntimeError(f"{kind.name} was said where {wanted.name} was expected")
        return payload

    def shut(self) -> None:
        """Ends both directions; whoever waits at either end wakes."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The other end was faster.
            return

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = self.socket.recv_into(view)
            except ConnectionError:
                count = 0
            if not count:
                raise EOFError("the other end of the group's socket is gone")
            view = view[count:]
        return data


def number(value: int) -> bytes:
    """One int64 as a payload."""
    return struct.pack("<q", value)


def read_number(payload: bytes | bytearray) -> int:
    value: int = struct.unpack("<q", payload)[0]
    return value

"""A rank other than 0: joins its group, loads its part, and runs every batch that rank 0 tells it.

`python -m engine.group.worker DIRECTORY RANK`, or `run_worker` in a process that somebody else started. It ends with
rank 0, whatever it is doing: no rank outlives its group.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import socket
import sys
import threading
from pathlib import Path

from engine.errors import StepdialError
from engine.group.leader import SOCKET
from engine.group.wire import Channel, Kind, RankSpec, number, read_number

log = logging.getLogger("stepdial.group")
LEAVE_S = 2.0
"""Seconds that a worker has to end by itself once rank 0 is gone; a forward that waits for a dead rank may never."""


def run_worker(directory: str, rank: int) -> None:
    """Serves as `rank` of the group that meets in `directory` until rank 0 is gone.

    An error is told to rank 0 and raised.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(Path(directory) / SOCKET))
        channel = Channel(sock)
        channel.send(Kind.JOIN, number(rank))
        done = threading.Event()
        threading.Thread(target=_leave_with_leader, args=(sock.fileno(), done), daemon=True).start()
        try:
            _serve(channel, rank)
        except EOFError:
            log.info("rank 0 is gone; rank %d ends", rank)
        except BaseException as error:
            text = str(error) if isinstance(error, StepdialError) else f"{type(error).__name__}: {error}"
            try:
                channel.send(Kind.FAILED, text.encode())
            except OSError:
                log.info("rank 0 is gone; rank %d ends (%s)", rank, text)
                return
            raise
        finally:
            done.set()
            # Rank 0 removes it too, unless it was killed.
            shutil.rmtree(directory, ignore_errors=True)


def _serve(channel: Channel, rank: int) -> None:
    spec = RankSpec.from_bytes(channel.expect(Kind.SPEC))
    # torch is loaded after joining, so that rank 0 hears of a worker early.
    import torch

    from engine.executor import Executor
    from engine.graphs import CudaRecorder
    from engine.group.follower import Follower
    from engine.loading import load_part
    from engine.model.parallel import file_store

    torch.set_num_threads(spec.threads)
    model = load_part(spec, rank)
    channel.send(Kind.LOADED)
    pages = read_number(channel.expect(Kind.MEMORY))
    executor = Executor(model, pages, model.config.block_size)
    channel.send(Kind.READY)
    channel.expect(Kind.MEET)
    model.parallel.connect(file_store(Path(spec.store), spec.size), spec.backend, model.device)
    if spec.cuda_graphs:
        executor.record_graphs(CudaRecorder())
    follower = Follower(executor, channel)
    try:
        while True:
            follower.follow()
    finally:
        executor.close()


def _leave_with_leader(file: int, done: threading.Event) -> None:
    """Waits for the end of rank 0 and ends this process, if it does not end by itself."""
    poll = select.poll()
    # Not for input: messages are the other thread's.
    poll.register(file, select.POLLRDHUP)
    poll.poll()
    if not done.wait(LEAVE_S):
        os._exit(1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run_worker(sys.argv[1], int(sys.argv[2]))

"""Trains the small model: `python -m engine.tiny.train --run DIR --minutes 110`.

AR alone first, then AR + 0.3 x diffusion (contract 7.5). The same command resumes a run: DIR/state.pt holds all of it.
Progress (0..1) drives every schedule and reaches 1 when the time is up, however often the process was stopped; a file
DIR/FINISH starts the final decay at once (its text: minutes that are left, default 10). `--start CHECKPOINT` goes on
from exported weights, in the joint phase and with answers of full length.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

from engine.tiny.export import load
from engine.tiny.network import Network, Shape
from engine.tiny.objective import collate
from engine.tiny.optimizer import optimizers
from engine.tiny.sampler import Sample, Sampler, micro_batches

JOINT_AT = 0.38
DECAY_AT = 0.78
DIFFUSION_WEIGHT = 0.3
WARM_UP_STEPS = 60
SAVE_EVERY_S = 120.0
START_AT = 0.6  # progress of a run that goes on from exported weights
MICRO_BATCH = 2048  # padded tokens; more fall out of a core's cache


@dataclass
class Clock:
    """Turns time into progress so that 1 is reached at `finish` (seconds of time.time()), pauses or not."""

    progress: float
    finish: float

    def advance(self, step_s: float) -> None:
        """Moves on by a step that took `step_s`; a pause makes the later steps count for more."""
        left = max(self.finish - time.time(), 0.0)
        self.progress += (1 - self.progress) * step_s / (left + step_s)

    def heed(self, request: Path) -> None:
        """Starts the final decay when the file `request` exists."""
        if request.exists():
            text = request.read_text().strip()
            self.finish = time.time() + 60 * float(text or 10)
            self.progress = max(self.progress, DECAY_AT)
            request.rename(request.with_suffix(".seen"))


def learning_rate(progress: float, step: int) -> float:
    """The factor of the peak rate: a short warm-up, constant, then linear down to 1%."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(0.01, min(1.0, (1 - progress) / (1 - DECAY_AT)))


def accumulate(
    network: Any, head: Any, batch: list[Sample], diffusion_weight: float
) -> tuple[list[float], list[tuple[Any, Any]]]:
    """Adds the gradients of one micro-batch: its mean AR loss plus `diffusion_weight` x its mean diffusion loss.

    Rows of a micro-batch are of similar length, so the mean of each weighs tokens of short answers more than tokens of
    long ones. Returns [AR loss, diffusion loss, right masked tokens, masked tokens], and for each row whether AR is
    right in all of it, and whether all of its masks are.
    """
    tensors = collate([sample.row for sample in batch])
    chosen = tensors.target >= 0
    target = tensors.target[chosen]
    # bfloat16 products are 2 to 3 times as fast as float32 ones on a CPU with avx512_bf16; weights stay float32.
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = network(tensors.ids, tensors.positions, tensors.mask)
        logits = head(hidden[chosen]).float()
    clean = tensors.clean[chosen]
    losses = F.cross_entropy(logits, target, reduction="none") * tensors.weight[chosen]
    ar = (losses * clean).sum() / clean.sum()
    noisy_tokens = sum(sample.noisy_tokens for sample in batch)
    diffusion = (losses * ~clean).sum() / max(noisy_tokens, 1)
    loss: Any = ar + diffusion_weight * diffusion
    loss.backward()
    right = logits.detach().argmax(-1) == target
    rows = chosen.nonzero()[:, 0]
    wrong = [torch.zeros(len(batch)).index_add_(0, rows, (~right & part).float()) for part in (clean, ~clean)]
    verdicts = [((wrong[0] == 0)[row].item(), (wrong[1] == 0)[row].item()) for row in range(len(batch))]
    return [ar.item(), diffusion.item(), float((right & ~clean).sum()), float((~clean).sum())], verdicts


def share_gradients(network: Network, batches: int) -> int:
    """Averages the gradients over all workers' micro-batches, in one message; returns the number of those."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([float(batches)])])
    dist.all_reduce(flat)
    total = flat[-1].item()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, torch.split(flat[:-1] / total, sizes), strict=True):
        gradient.copy_(part.view_as(gradient))
    return int(total)


def train(
    run: Path,
    tokenizer_path: Path,
    minutes: float,
    tokens: int,
    rates: tuple[float, float],
    seed: int,
    rank: int,
    diffusion_weight: float,
    start: Path | None,
    more: dict[str, float],
) -> None:
    """Runs until the time is up; see the module's text."""
    torch.manual_seed(seed)
    network = Network(Shape()) if start is None else load(start).train()
    peak = optimizers(network, *rates)
    for optimizer in peak:
        optimizer.param_groups[0]["peak"] = optimizer.param_groups[0]["lr"]
    sampler = Sampler(Tokenizer.from_file(str(tokenizer_path)), Random(f"{seed} {rank}"), more=more)
    clock = Clock(0.0, time.time() + 60 * minutes)
    state_path, step, seen, active_s = run / "state.pt", 0, 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=False)
        network.load_state_dict(state["network"])
        for optimizer, saved in zip(peak, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        sampler.exact |= {task: value for task, value in state["exact"].items() if task in sampler.exact}
        sampler.denoised |= state.get("denoised", {})
        sampler.level |= {task: value for task, value in state.get("level", {}).items() if task in sampler.level}
        sampler.rng.seed(f"{seed} {rank} {state['step']}")
        step, seen, active_s, clock.progress = state["step"], state["tokens"], state["active_s"], state["progress"]
    elif start is not None:
        sampler.level = dict.fromkeys(sampler.level, 1.0)
        clock.progress = START_AT
    compiled = torch.compile(network, dynamic=True)
    saved_at = logged_at = time.time()
    recent: list[list[float]] = []
    # Each worker counts its tokens here, and a step ends when they have made enough together: a worker whose core is
    # taken by other processes does less and holds nobody up.
    workers = dist.get_world_size()
    counts = torch.from_file(str(run / "counts"), shared=True, size=workers, dtype=torch.int64)
    counts[rank] = 0
    dist.barrier()
    goal = 0
    pool: list[list[Sample]] = []
    while True:
        begun = time.time()
        if rank == 0:
            clock.heed(run / "FINISH")
        shared = torch.tensor([clock.progress], dtype=torch.float64)
        dist.broadcast(shared, 0)  # one worker's clock decides for all
        clock.progress = shared.item()
        if clock.progress >= 0.9995:
            break
        joint = clock.progress >= JOINT_AT
        goal += tokens
        sums, batches = [0.0, 0.0, 0.0, 0.0], 0
        while batches == 0 or int(counts.sum()) < goal:
            if not pool:
                pool = micro_batches(sampler.step(3 * tokens, clock.progress, joint), MICRO_BATCH)
                sampler.rng.shuffle(pool)
            batch = pool.pop()
            parts, exact = accumulate(compiled, network.diffusion_head, batch, diffusion_weight)
            sums = [a + b for a, b in zip(sums, parts, strict=True)]
            batches += 1
            counts[rank] += sum(len(sample.row.ids) for sample in batch)
            for sample, right in zip(batch, exact, strict=True):
                sampler.note(sample, *right)
        share_gradients(network, batches)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0).item()
        factor = learning_rate(clock.progress, step)
        for optimizer in peak:
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["peak"] * factor
            optimizer.step()
            optimizer.zero_grad()
        took = time.time() - begun
        clock.advance(min(took, 10.0))
        active_s += min(took, 10.0)
        step += 1
        seen += tokens
        recent.append([sums[0] / batches, sums[1] / batches, *sums[2:], norm, tokens, took])
        if rank == 0 and time.time() - logged_at > 15:
            log(step, seen, clock.progress, factor, recent, sampler)
            recent, logged_at = [], time.time()
        if rank == 0 and time.time() - saved_at > SAVE_EVERY_S:
            save(state_path, network, peak, sampler, step, seen, active_s, clock.progress)
            saved_at = time.time()
    if rank == 0:
        save(state_path, network, peak, sampler, step, seen, active_s, 1.0)
        print("finished", flush=True)


def log(step: int, seen: int, progress: float, factor: float, recent: list[list[float]], sampler: Sampler) -> None:
    """One JSON line: means of the last steps."""
    ar, diffusion, right, masked, norm, count, took = (sum(column) for column in zip(*recent, strict=True))
    entry = {
        "at": time.strftime("%H:%M:%S"),
        "step": step,
        "tokens_m": round(seen / 1e6, 2),
        "progress": round(progress, 4),
        "rate": round(factor, 3),
        "ar": round(ar / len(recent), 4),
        "diffusion": round(diffusion / len(recent), 4),
        "masked_right": round(right / max(masked, 1), 3),
        "norm": round(norm / len(recent), 2),
        "tokens_per_s": round(count / took),
        "level_exact": {
            name: [round(sampler.level[name], 2), round(sampler.exact[name], 2), round(sampler.denoised[name], 2)]
            for name in sampler.level
        },
    }
    print(json.dumps(entry), flush=True)


def save(
    path: Path, network: Network, peak: list[torch.optim.Optimizer], sampler: Sampler,
    step: int, seen: int, active_s: float, progress: float,
) -> None:  # fmt: skip
    """Writes the state next to the old one, then replaces it: a killed save loses nothing."""
    state = {
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in peak],
        "exact": sampler.exact,
        "denoised": sampler.denoised,
        "level": sampler.level,
        "step": step,
        "tokens": seen,
        "active_s": active_s,
        "progress": progress,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run: state.pt, pid, FINISH")
    parser.add_argument("--tokenizer", type=Path, default=Path(__file__).parent / "checkpoint" / "tokenizer.json")
    parser.add_argument("--minutes", type=float, default=110, help="wall time from now until the end")
    parser.add_argument("--tokens", type=int, default=9000, help="tokens of a step, noisy halves included")
    parser.add_argument("--matrix-rate", type=float, default=0.008, help="Muon's peak learning rate")
    parser.add_argument("--other-rate", type=float, default=3e-3, help="AdamW's peak learning rate")
    parser.add_argument("--diffusion-weight", type=float, default=DIFFUSION_WEIGHT, help="of the diffusion loss")
    parser.add_argument("--start", type=Path, help="a checkpoint whose weights a new run goes on from")
    parser.add_argument("--more", nargs="*", default=[], help="tasks to draw more often, as TASK=FACTOR")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, which beat threads here")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = arguments.run.absolute() / "workers"
    children = []
    if arguments.rank == 0:
        arguments.run.mkdir(parents=True, exist_ok=True)
        (arguments.run / "pid").write_text(str(os.getpid()))
        meeting.unlink(missing_ok=True)
        command = [sys.executable, "-m", "engine.tiny.train", *sys.argv[1:], "--rank"]
        children = [subprocess.Popen([*command, str(rank)]) for rank in range(1, arguments.workers)]
    dist.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=arguments.rank, world_size=arguments.workers,
        timeout=timedelta(hours=6),
    )  # fmt: skip
    rates = (arguments.matrix_rate, arguments.other_rate)
    train(
        arguments.run,
        arguments.tokenizer,
        arguments.minutes,
        arguments.tokens,
        rates,
        arguments.seed,
        arguments.rank,
        arguments.diffusion_weight,
        arguments.start,
        {task: float(factor) for task, factor in (part.split("=") for part in arguments.more)},
    )
    for child in children:
        child.wait()


if __name__ == "__main__":
    main()

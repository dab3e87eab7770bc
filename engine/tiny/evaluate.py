"""Exact match of an exported checkpoint in the training forward, to steer the training.

`python -m engine.tiny.evaluate DIR --count 300` prints a table: AR (teacher forcing: greedy AR is right exactly when
every next token is), diffusion per block length and step budget, and self-speculation's tokens per round.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.tiny.export import load
from engine.tiny.network import KeyValues, Network
from engine.tiny.tasks import SPLITS, Split, generate
from engine.tiny.tokenizer import EOS_ID, MASK_ID, render

LONGEST = 256
BATCH = 50

Example = tuple[str, list[int], list[int]]


class Context:
    """The clean tokens of a batch: keys and values, which of them count, and how many each row has."""

    def __init__(self, network: Network, prompts: list[list[int]]) -> None:
        self.network = network
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        width = int(self.lengths.max())
        ids = torch.tensor([prompt + [EOS_ID] * (width - len(prompt)) for prompt in prompts])
        hidden, self.past = network(ids, torch.arange(width).expand_as(ids))
        self.valid = torch.arange(width) < self.lengths[:, None]
        self.seed = self.pick(hidden[torch.arange(len(prompts)), self.lengths - 1])[0]

    def pick(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Best token and its probability; the mask is never a candidate but counts in the softmax."""
        logits = self.network.diffusion_head(hidden)
        probability = logits.softmax(-1)
        probability[..., MASK_ID] = 0
        best = probability.max(-1)
        return best.indices, best.values

    def run(self, ids: Tensor, causal: bool) -> tuple[Tensor, KeyValues]:
        """The tokens after the context: hidden states and all keys and values. ids [B, n]."""
        n = ids.shape[1]
        own = torch.ones(n, n, dtype=torch.bool)
        own = own.tril() if causal else own
        mask = torch.cat((self.valid[:, None, :].expand(-1, n, -1), own.expand(len(ids), -1, -1)), dim=2)
        positions = self.lengths[:, None] + torch.arange(n)
        hidden, present = self.network(ids, positions, mask[:, None], self.past)
        return hidden, present

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only (bool [B])."""
        self.past = [(keys[rows], values[rows]) for keys, values in self.past]
        self.valid, self.lengths, self.seed = self.valid[rows], self.lengths[rows], self.seed[rows]

    def keep(self, present: KeyValues, counts: Tensor, width: int) -> None:
        """Takes the first `counts` of the last `width` tokens into the context."""
        self.past = present
        self.valid = torch.cat((self.valid, torch.arange(width) < counts[:, None]), dim=1)
        self.lengths = self.lengths + counts


@torch.inference_mode()
def diffuse(
    network: Network, prompts: list[list[int]], block: int, steps: int, threshold: float = 2.0
) -> list[list[int]]:
    """Block diffusion of requests.md section 1: budget `steps`, early commit at `threshold` (above 1: never)."""
    context = Context(network, prompts)
    outputs: list[list[int]] = [[] for _ in prompts]
    active = torch.arange(len(prompts))
    for _ in range(0, LONGEST, block):
        canvas = torch.full((len(active), block), MASK_ID)
        canvas[:, 0] = context.seed
        masked = torch.ones_like(canvas, dtype=torch.bool)
        masked[:, 0] = False
        for step in range(steps):
            if not masked.any():
                break
            token, confidence = context.pick(context.run(canvas, causal=False)[0])
            confidence = confidence.masked_fill(~masked, -1)
            forced = (masked.sum(1) / (steps - step)).ceil().long()
            count = torch.maximum(forced, (confidence >= threshold).sum(1))
            rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            commit = masked & (rank < count[:, None])
            canvas = torch.where(commit, token, canvas)
            masked &= ~commit
        hidden, present = context.run(canvas, causal=True)
        context.keep(present, torch.full((len(active),), block), block)
        context.seed = context.pick(hidden[:, -1])[0]
        for row, tokens in zip(active.tolist(), canvas.tolist(), strict=True):
            outputs[row] += tokens
        going = ~(canvas == EOS_ID).any(1)
        if not going.any():
            break
        context.select(going)
        active = active[going]
    return outputs


@torch.inference_mode()
def speculate(network: Network, prompts: list[list[int]], block: int) -> tuple[list[list[int]], int]:
    """Self-speculation at temperature 0 (contract 4.4); also the number of rounds (a draft and a verification)."""
    context = Context(network, prompts)
    outputs = [[token] for token in context.seed.tolist()]
    active = torch.arange(len(prompts))
    rounds = 0
    while len(active) and max(map(len, outputs)) < LONGEST:
        canvas = torch.full((len(active), block), MASK_ID)
        canvas[:, 0] = context.seed
        canvas[:, 1:] = context.pick(context.run(canvas, causal=False)[0])[0][:, 1:]
        hidden, present = context.run(canvas, causal=True)
        chosen = context.pick(hidden)[0]
        accepted = 1 + (chosen[:, :-1] == canvas[:, 1:]).long().cumprod(1).sum(1)
        context.keep(present, accepted, block)
        context.seed = chosen[torch.arange(len(active)), accepted - 1]
        rounds += len(active)
        going = torch.ones(len(active), dtype=torch.bool)
        for at, row in enumerate(active.tolist()):
            new = chosen[at, : accepted[at]].tolist()
            going[at] = EOS_ID not in new
            outputs[row] += new if going[at] else new[: new.index(EOS_ID) + 1]
        context.select(going)
        active = active[going]
    return outputs, rounds


@torch.inference_mode()
def autoregressive(network: Network, batch: list[Example]) -> list[bool]:
    """Whether greedy AR gives exactly the answer."""
    width = max(len(prompt) + len(answer) for _, prompt, answer in batch)
    ids = torch.tensor([p + a + [EOS_ID] * (width - len(p) - len(a)) for _, p, a in batch])
    hidden, _ = network(ids, torch.arange(width).expand_as(ids))
    best = network.diffusion_head(hidden).argmax(-1).tolist()
    return [row[len(p) - 1 : len(p) + len(a) - 1] == a for row, (_, p, a) in zip(best, batch, strict=True)]


def examples(tokenizer: Tokenizer, split: Split, count: int, seed: int) -> list[Example]:
    """(task, prompt ids, answer ids with EOS), similar lengths next to each other."""
    encoded = [
        (
            task.task,
            tokenizer.encode(render(task.messages), add_special_tokens=False).ids,
            [*tokenizer.encode(task.answer, add_special_tokens=False).ids, EOS_ID],
        )
        for task in generate(split, count, seed)
    ]
    return sorted(encoded, key=lambda example: (len(example[2]), len(example[1])))


def same(output: list[int], answer: list[int]) -> bool:
    """Whether the output up to its first EOS is the answer."""
    return output[: len(answer)] == answer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--split", choices=SPLITS, default="calibration")
    parser.add_argument("--seed", type=int, default=0)
    cells = "4:4,8:8,16:16,32:32,32:8,32:4,32:2,32:1,8:4,8:2,8:1"
    parser.add_argument("--cells", default=cells, help="block:steps, ...")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
    network = load(arguments.checkpoint)
    torch.set_num_threads(1)
    rows = examples(tokenizer, arguments.split, arguments.count, arguments.seed)
    batches = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]

    def report(name: str, right: list[bool], note: str = "") -> None:
        per_task: dict[str, list[bool]] = defaultdict(list)
        for (task, _, _), is_right in zip(rows, right, strict=True):
            per_task[task].append(is_right)
        shares = {task: round(100 * sum(v) / len(v)) for task, v in sorted(per_task.items())}
        print(f"{name:>12} {100 * sum(right) / len(right):5.1f} {note} {json.dumps(shares)}", flush=True)

    report("ar", [right for batch in batches for right in autoregressive(network, batch)])
    for cell in filter(None, arguments.cells.split(",")):
        block, steps = map(int, cell.split(":"))
        right = []
        for batch in batches:
            outputs = diffuse(network, [prompt for _, prompt, _ in batch], block, steps)
            right += [same(output, answer) for output, (_, _, answer) in zip(outputs, batch, strict=True)]
        report(f"{block}:{steps}", right)
    for block in (8, 32):
        right, rounds, tokens = [], 0, 0
        for batch in batches:
            outputs, batch_rounds = speculate(network, [prompt for _, prompt, _ in batch], block)
            rounds, tokens = rounds + batch_rounds, tokens + sum(map(len, outputs)) - len(batch)
            right += [same(output, answer) for output, (_, _, answer) in zip(outputs, batch, strict=True)]
        report(f"spec {block}", right, f"{tokens / rounds:.2f} tokens per round")


if __name__ == "__main__":
    main()

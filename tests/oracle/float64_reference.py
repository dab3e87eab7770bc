"""Where a float32 answer may differ from another: only where float64 is undecided to 1e-5 (`requests.md` section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.reference_loops import ContextCache, ReferenceLoops
from engine.noise import Stage, seed_bits
from engine.sampling import filter_logits
from kernels.noise import gumbel_noise
from tests.oracle.golden_cases import GOLDEN, MASK
from tests.oracle.mixed_requests import Request, Result

UNDECIDED = 1e-5


class DecidedDifference(AssertionError):
    """Two answers differ where the float64 reference leaves no doubt."""


class Float64Reference:
    """The golden checkpoint on transformers' modules in float64."""

    def __init__(self) -> None:
        self.loops = ReferenceLoops(GOLDEN, torch.float64)

    def assert_undecided(self, request: Request, mine: Result, other: Result) -> None:
        """Raises DecidedDifference unless the first difference of two answers is at an undecided point."""
        for step, (left, right) in enumerate(zip(mine.canvases, other.canvases, strict=False)):
            if left == right:
                continue
            if left.start == right.start and left.tokens[0] == right.tokens[0]:
                before = mine.canvases[step - 1] if step else None
                fresh = before is None or before.start != left.start
                tokens = [left.tokens[0]] + [MASK] * (len(left.tokens) - 1) if fresh else before.tokens
                first = next(i for i, canvas in enumerate(mine.canvases) if canvas.start == left.start)
                context = (request.prompt + mine.token_ids)[: left.start]
                self._denoise(request, context, tokens, step - first, left.tokens, right.tokens)
                return
            break
        self._causal(request, mine.token_ids, other.token_ids)

    @torch.inference_mode()
    def _causal(self, request: Request, mine: list[int], other: list[int]) -> None:
        """The first token that differs was chosen by a causal pass, or kept by it to within a tolerance."""
        place = next(i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b)
        context = request.prompt + mine[:place]
        logits = self.loops.model.lm_head(self.loops.causal(context, ContextCache(config=self.loops.model.config))[-1:])
        scores = self._scores(request, logits, [len(context)], Stage.CAUSAL, 0)[0]
        pair = scores[[mine[place], other[place]]]
        audit = request.fields.get("audit")
        doubts = [float(scores.max() - pair.min())]
        if isinstance(audit, float):
            doubts += [
                float(abs((logits[0, token] - logits.max()).exp() - audit)) for token in (mine[place], other[place])
            ]
        if min(doubts) >= UNDECIDED:
            raise DecidedDifference(
                f"token {place}: {mine[place]} or {other[place]}, float64 is sure by {min(doubts):.2e}"
            )

    @torch.inference_mode()
    def _denoise(
        self, request: Request, context: list[int], canvas: list[int], step: int, mine: list[int], other: list[int]
    ) -> None:
        """A draft step committed different tokens, or committed at different places."""
        cache = ContextCache(config=self.loops.model.config)
        self.loops.causal(context, cache)
        draft = request.fields["decoding"] == "self_speculation"
        logits = self.loops.bidirectional(canvas, cache, draft)
        positions = [len(context) + offset for offset in range(len(canvas))]
        scores = self._scores(request, logits, positions, Stage.DRAFT if draft else Stage.DENOISE, step)
        best = scores.topk(2).values
        temperature = request.fields["temperature"] if draft and request.fields["temperature"] else 1.0
        chosen = scores.argmax(-1)
        confidence = (logits / temperature).softmax(-1).gather(1, chosen[:, None])[:, 0]
        threshold = request.fields.get("threshold")
        differing = [offset for offset in range(len(canvas)) if mine[offset] != other[offset]]
        for offset in differing:
            doubts = [float(best[offset, 0] - best[offset, 1])]
            if MASK in (mine[offset], other[offset]):
                if threshold is not None:
                    doubts.append(float(abs(confidence[offset] - threshold)))
                rivals = [rival for rival in differing if rival != offset]
                doubts += [float(abs(confidence[offset] - confidence[rival])) for rival in rivals]
            if min(doubts) >= UNDECIDED:
                raise DecidedDifference(f"canvas offset {offset}, step {step}: float64 is sure by {min(doubts):.2e}")

    @staticmethod
    def _scores(request: Request, logits: Tensor, positions: list[int], stage: Stage, step: int) -> Tensor:
        """What the choice maximises: logits, or tempered ones within top-k and top-p plus the request's noise."""
        logits = logits.clone()
        logits[:, MASK] = -torch.inf
        temperature = request.fields["temperature"]
        if temperature == 0:
            return logits
        rows = len(positions)
        scaled = filter_logits(
            (logits / temperature).float(),
            torch.full((rows,), request.fields.get("top_k", -1)),
            torch.full((rows,), request.fields.get("top_p", 1.0)),
        )
        noise = gumbel_noise(
            torch.full((rows,), seed_bits(request.fields["seed"])),
            torch.tensor(positions),
            torch.full((rows,), int(stage)),
            torch.full((rows,), step),
            torch.zeros(rows, dtype=torch.int64),
            logits.shape[1],
        )
        kept = torch.where(scaled.isinf(), -torch.inf, logits / temperature)
        return kept + noise

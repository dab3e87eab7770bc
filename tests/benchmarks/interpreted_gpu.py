"""What the GPU benchmark launches, in Triton's interpreter: run by `test_gpu.py` in a process of its own. float32 only:
the interpreter gets bf16 wrong."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import correctness, correctness_head
from benchmarks.gpu.forward import step_of
from benchmarks.gpu.head_inputs import exact_head, rules
from benchmarks.gpu.kernels_head import statistics_of
from benchmarks.gpu.paged import canvases, pages_of
from benchmarks.gpu.section import Section
from benchmarks.gpu.shapes import BLOCK, TINY, RandomWeights, build
from engine.executor import Executor
from kernels.reach_work import SplitRule
from tests.kernels.head_cases import same


def section() -> Section:
    part = Section(torch.device("cpu"), tiny=True, ceilings=None, ends_s=float("inf"))
    assert part.triton
    return part


@pytest.mark.parametrize("sampled", [False, True])
def test_statistics_after_a_product(sampled: bool) -> None:
    part = section()
    hidden, weight = exact_head(part, TINY, 5, torch.float32)
    asked = rules(part, TINY, 5, sampled)
    logits = hidden @ weight.t()
    same(statistics_of(logits, asked, triton=True), statistics_of(logits, asked, triton=False))


def test_layer_kernels_pass_their_checks() -> None:
    part = section()
    for check in (correctness.norm, correctness.swiglu, correctness.rope_and_kv):
        assert check(part, torch.float32)["passed"]


def test_products_of_few_rows_pass_their_check() -> None:
    assert correctness.narrow(section(), torch.float32, 17)["passed"]


def test_reach_attention_passes_its_check() -> None:
    assert correctness.attention(section(), torch.float32, SplitRule())["passed"]


def test_what_chooses_tokens_passes_its_checks() -> None:
    assert correctness_head.exact(section(), torch.float32, 17, sampled=True)["passed"]
    for with_policies in (False, True):
        assert correctness_head.unmasking(section(), with_policies)["passed"]
    assert correctness_head.audit(section())["passed"]


def test_a_forward_ends_in_the_head() -> None:
    """The measured call gives the tokens that the model's logits name."""
    part = section()
    model = build(RandomWeights(TINY, torch.float32, part.device))
    executor = Executor(model, pages_of(2, 40), BLOCK)
    executor.kv.normal_(generator=part.draw(1))
    batch = executor.batch(canvases(2, 40, TINY.vocab_size))
    known = step_of(executor, batch)()
    with torch.inference_mode():
        logits = executor.run(batch)
        logits[:, TINY.mask_token_id] = float("-inf")
    assert not executor.keeps_logits
    assert torch.equal(known.tokens, logits.argmax(-1))

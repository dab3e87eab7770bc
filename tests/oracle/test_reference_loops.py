"""The benchmark's opponent gives what the released loops give, so that being faster than it means something."""

import pytest

from benchmarks.reference_loops import ReferenceLoops
from tests.oracle.golden_cases import CASES, GOLDEN, case_name


@pytest.fixture(scope="module")
def loops() -> ReferenceLoops:
    return ReferenceLoops(GOLDEN)


# Every seventh case: all modes, block lengths and thresholds are among them.
@pytest.mark.parametrize("index", range(0, len(CASES), 7), ids=case_name)
def test_loop_gives_the_golden_tokens(loops: ReferenceLoops, index: int) -> None:
    case = CASES[index]
    prompt, new = case["prompt"], case["max_new_tokens"]
    if case["mode"] == "ar":
        answer = loops.ar_generate(prompt, new)
        assert answer.nfe == len(case["output"])
    elif case["mode"] == "diffusion":
        answer = loops.generate(prompt, new, case["block_length"], case["threshold"])
        assert answer.canvases[: len(case["canvases"])] == case["canvases"]
        assert answer.nfe == case["nfe"]
    else:
        answer = loops.linear_spec_generate(prompt, new, case["block_length"], case["threshold"])
        assert answer.accepted == case["accepted"]
        assert answer.nfe == case["nfe"]
    assert answer.ids == case["output"]


def test_subset_has_every_setting() -> None:
    def settings(cases: list[dict]) -> set[tuple]:
        return {(case["mode"], case.get("block_length"), case.get("threshold")) for case in cases}

    assert settings(CASES[::7]) == settings(CASES)

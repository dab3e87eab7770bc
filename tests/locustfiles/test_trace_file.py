"""Traces: what is read, what is refused and where, and what scaling does."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from deployments.history import quantile
from locustfiles.trace_file import (
    CONV_OUTPUT,
    CONV_PROMPT,
    Scale,
    TraceError,
    TraceRequest,
    fit,
    generated,
    mean_rate,
    read_trace,
    scaled,
)

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:46.6805900,2735,424
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def test_azure_columns_become_seconds_after_the_first_request(file: Path) -> None:
    file.write_text(AZURE)
    requests = read_trace(file)
    assert [(each.prompt_tokens, each.output_tokens) for each in requests] == [(374, 44), (396, 109), (2735, 424)]
    assert [each.at_s for each in requests] == pytest.approx([0.0, 4.314579, 60.0], abs=1e-5)


def test_plain_columns_in_any_order_with_others_beside_them(file: Path) -> None:
    file.write_text("output_tokens,user,timestamp,prompt_tokens\n7,x,12.5,30\n9,y,10,40\n\n")
    assert read_trace(file) == [TraceRequest(0.0, 40, 9), TraceRequest(2.5, 30, 7)]


def test_bad_lines_are_named_by_their_numbers(file: Path) -> None:
    file.write_text(
        "timestamp,prompt_tokens,output_tokens\n0,1,1\nsoon,1,1\n2,1,1\n3,-4,1\n4,1,1.5\n5,1\n6,0,1\ninf,1,1\n"
    )
    with pytest.raises(TraceError) as caught:
        read_trace(file)
    text = str(caught.value)
    assert "trace.csv:3: the time is 'soon'" in text
    assert "trace.csv:5: prompt_tokens is '-4'" in text
    assert "trace.csv:6: output_tokens is '1.5'" in text
    assert "trace.csv:7: 2 columns" in text
    assert "trace.csv:8: prompt_tokens is '0'" in text
    assert text.endswith("and 1 more")
    assert "trace.csv:2:" not in text
    assert "trace.csv:4:" not in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("when,in,out\n1,2,3\n", "trace.csv:1: the header is 'when,in,out'"),
        ("", "trace.csv:1: the header is ''"),
        ("timestamp,prompt_tokens,output_tokens\n", "has no requests"),
    ],
)
def test_what_is_no_trace_is_said_so(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(TraceError, match=says):
        read_trace(file)


def test_a_file_that_is_not_there_or_not_text(file: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(file)


EVEN = [TraceRequest(float(at_s), 160, 40) for at_s in range(101)]
"""101 requests in 100 s."""


def test_stretching_gives_the_rate_and_keeps_every_request() -> None:
    scale = fit(EVEN, 0.101, "stretch", 1 / 16, 1 / 4)
    assert scale.time == pytest.approx(10.0)
    assert scale.kept == 1
    replayed = list(scaled(EVEN, scale, 95.0, Random(1)))
    assert [each.at_s for each in replayed] == pytest.approx([10.0 * n for n in range(10)])
    assert {(each.prompt_tokens, each.output_tokens) for each in replayed} == {(10, 10)}


def test_thinning_gives_the_rate_and_keeps_the_time() -> None:
    many = [TraceRequest(at / 50, 8, 8) for at in range(20_000)]
    scale = fit(many, 5.0, "thin", 1.0, 1.0)
    assert scale.time == 1
    kept = list(scaled(many, scale, 400.0, Random(2)))
    assert len(kept) == pytest.approx(2000, rel=0.1)
    assert {each.at_s for each in kept} <= {each.at_s for each in many}


def test_thinning_cannot_add_requests() -> None:
    with pytest.raises(TraceError, match=r"the rate is 2\.0/s; allowed when thinning: at most the trace's own 1\.01/s"):
        fit(EVEN, 2.0, "thin", 1.0, 1.0)


def test_a_replay_may_start_inside_the_trace_and_lengths_never_become_nothing() -> None:
    replayed = list(scaled(EVEN, Scale(prompt=0.001, output=0.001, start_s=90.0), 1000.0, Random(1)))
    assert [each.at_s for each in replayed] == [float(at_s) for at_s in range(11)]
    assert (replayed[0].prompt_tokens, replayed[0].output_tokens) == (1, 1)


def test_a_trace_of_one_moment_has_no_rate() -> None:
    with pytest.raises(TraceError, match="at least two moments"):
        mean_rate([TraceRequest(1.0, 1, 1), TraceRequest(1.0, 1, 1)])


def test_generated_lengths_have_the_median_and_the_ninth_decile_of_the_azure_conversations() -> None:
    requests = list(generated(50.0, 400.0, Random(3)))
    assert len(requests) == pytest.approx(20_000, rel=0.05)
    for lengths, known in (
        ([each.prompt_tokens for each in requests], CONV_PROMPT),
        ([each.output_tokens for each in requests], CONV_OUTPUT),
    ):
        assert quantile([float(length) for length in lengths], 0.5) == pytest.approx(known.p50, rel=0.05)
        assert quantile([float(length) for length in lengths], 0.9) == pytest.approx(known.p90, rel=0.05)
    assert (CONV_PROMPT.p50, CONV_PROMPT.p90, CONV_OUTPUT.p50, CONV_OUTPUT.p90) == (1020, 2735, 129, 424)

"""What is remembered of answers' lengths: of each class of `max_tokens` the latest, and a mean of all."""

from __future__ import annotations

import numpy as np
import pytest

from engine.answer_lengths import MOST_ANSWERS, PRIOR_ANSWERS, PRIOR_TOKENS, REMEMBERED, AnswerLengths


def test_answers_of_requests_that_allowed_about_as_much_are_told_apart_from_others() -> None:
    lengths = AnswerLengths()
    for most, tokens in [(16, 4), (10, 9), (17, 12), (32, 20), (33, 33)]:
        lengths.observe(tokens, most)
    assert sorted(lengths.like(12)) == [4, 9]
    assert sorted(lengths.like(32)) == [12, 20]
    assert lengths.like(64).tolist() == [33]
    assert len(lengths.like(1000)) == 0
    assert len(lengths.like(1)) == 0


def test_the_latest_are_remembered() -> None:
    lengths = AnswerLengths()
    for tokens in range(1, 3 * REMEMBERED // 2 + 1):
        lengths.observe(tokens, 100)
    assert sorted(lengths.like(100)) == list(range(REMEMBERED // 2 + 1, 3 * REMEMBERED // 2 + 1))


def test_the_mean_begins_with_a_prior_and_follows_what_is_seen() -> None:
    lengths = AnswerLengths()
    assert lengths.mean == PRIOR_TOKENS
    lengths.observe(10, 64)
    assert lengths.mean == pytest.approx(PRIOR_TOKENS + (10 - PRIOR_TOKENS) / PRIOR_ANSWERS)
    for tokens in np.random.default_rng(0).integers(80, 121, 10 * MOST_ANSWERS):
        lengths.observe(int(tokens), 128)
    assert lengths.mean == pytest.approx(100, rel=0.05)

"""The parts of several ranks are the model: shapes, sums, gathers, and the logits of 1, 2, 4 and 8 ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.batch import Segment
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.memory import check_tensor_parallel, weight_bytes
from engine.checkpoint.weights import HEAD, load_draft_adapter, load_weights, open_weights
from engine.errors import CheckpointError
from engine.executor import Executor
from engine.model.parallel import Shard, TensorParallel, rank_config, split_axis
from engine.model.transformer import Transformer
from tests.engine.checkpoint.golden import GOLDEN, write_copy
from tests.engine.ranks import on_ranks
from tests.oracle.random_model import PAGE, random_tensors, raw_config, save_checkpoint

CONFIG = ModelConfig.from_dir(GOLDEN)
EIGHT_HEADS: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 16}
LOGIT_TOLERANCE = 2e-5
"""Largest difference of a logit of size 1 to 10 in float32: the sums have another order."""


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with eight K/V heads, as the family has."""
    raw = raw_config(**EIGHT_HEADS)
    return save_checkpoint(tmp_path_factory.mktemp("eight") / "checkpoint", raw, random_tensors(raw, seed=5))


def executor(path: Path, parallel: TensorParallel | None = None) -> Executor:
    """One rank's model with its K/V memory, its weights read from the files."""
    config = ModelConfig.from_dir(path)
    parallel = parallel or TensorParallel()
    adapter = load_draft_adapter(path, config, shard=parallel.shard)
    with open_weights(path, config, shard=parallel.shard) as weights:
        return Executor(Transformer(config, weights, adapter, parallel), 40, PAGE)


def segments() -> list[Segment]:
    """A prompt chunk, a canvas with drafts, a look at a canvas, and two AR tokens, on pages of their own."""
    generator = torch.Generator().manual_seed(0)
    pages = iter(range(1, 40))
    made = []
    for rows, start, causal, drafted in (
        (70, 0, True, False), (32, 0, False, True), (16, 0, True, False), (1, 0, True, False), (1, 0, True, False),
    ):  # fmt: skip
        tokens = torch.randint(0, 160, (rows,), generator=generator).tolist()
        held = [next(pages) for _ in range(-(-(start + rows) // PAGE))]
        made.append(Segment(tokens, start, causal, drafted, list(range(rows)), held))
    return made


def test_the_parts_of_all_ranks_are_the_tensor() -> None:
    stored = load_file(GOLDEN / "model.safetensors")
    parts = [load_weights(GOLDEN, CONFIG, shard=Shard(rank, 2)) for rank in range(2)]
    for name, tensor in stored.items():
        axis = split_axis(name)
        one, other = parts[0][name], parts[1][name]
        if axis is None:
            assert torch.equal(one, tensor)
            assert torch.equal(other, tensor)
        else:
            assert torch.equal(torch.cat((one, other), axis), tensor)
            assert one.shape == other.shape
        assert one.data_ptr() % 64 == 0
    assert all((split_axis(name) is None) == name.endswith("norm.weight") for name in stored)


def test_a_rank_reads_the_columns_of_a_and_all_of_b() -> None:
    whole = load_draft_adapter(GOLDEN, CONFIG)
    second = load_draft_adapter(GOLDEN, CONFIG, shard=Shard(1, 2))
    assert whole is not None
    assert second is not None
    for (a, b), (part_a, part_b) in zip(whole.layers, second.layers, strict=True):
        assert torch.equal(part_a, a[:, 64:])
        assert torch.equal(part_b, b)


def test_pieces_of_a_tensor_make_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.checkpoint.weights.PIECE_BYTES", 1000)
    stored = load_file(GOLDEN / "model.safetensors")
    second = load_weights(GOLDEN, CONFIG, shard=Shard(1, 2))
    for name in ("encoder.layers.1.mlp.down_proj.weight", "encoder.layers.1.self_attn.k_proj.weight"):
        axis = split_axis(name)
        assert axis is not None
        assert torch.equal(second[name], stored[name].chunk(2, axis)[1])


def test_a_tied_head_is_cut_like_the_embedding(tmp_path: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors[HEAD]

    tied = write_copy(tmp_path / "tied", {"tie_word_embeddings": True}, drop, adapter=False)
    config = ModelConfig.from_dir(tied)
    with open_weights(tied, config, shard=Shard(1, 2)) as reader:
        assert torch.equal(reader.pop(HEAD), load_weights(tied, config)[HEAD][80:])


def test_the_memory_plan_is_what_a_rank_holds() -> None:
    def elements(shard: Shard) -> int:
        adapter = load_draft_adapter(GOLDEN, CONFIG, shard=shard)
        assert adapter is not None
        pairs = [part for pair in adapter.layers for part in pair]
        return sum(tensor.numel() for tensor in [*load_weights(GOLDEN, CONFIG, shard=shard).values(), *pairs])

    for size in (1, 2):
        for rank in range(size):
            assert 4 * elements(Shard(rank, size)) == weight_bytes(CONFIG, "float32", size, adapter_rank=8)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_every_number_of_ranks_gives_the_logits_of_one(eight: Path, size: int) -> None:
    alone = executor(eight)
    expected = alone.run(alone.batch(segments()))

    def work(parallel: TensorParallel) -> tuple[Tensor, Tensor, torch.Size]:
        rank = executor(eight, parallel)
        together = rank.run(rank.batch(segments()))
        return together, torch.cat([rank.run(rank.batch([one])) for one in segments()]), rank.kv.shape

    results = on_ranks(size, work)
    for together, apart, kv_shape in results:
        assert kv_shape == (3, 40 * PAGE, 2, 8 // size, 16)
        torch.testing.assert_close(together, expected, atol=LOGIT_TOLERANCE, rtol=0)
        assert torch.equal(together, results[0][0]), "every rank has the same bits"
        assert torch.equal(apart, together), "a row's bits do not depend on its batch"


def test_drafts_run_with_the_adapter_on_two_ranks() -> None:
    def logits(parallel: TensorParallel | None, drafted: bool) -> Tensor:
        rank = executor(GOLDEN, parallel)
        canvas = Segment([1, *[100] * 15], 0, False, drafted, list(range(16)), [1])
        return rank.run(rank.batch([canvas]))

    with torch.inference_mode():
        drafted, plain = logits(None, True), logits(None, False)
    assert not torch.allclose(drafted, plain, atol=1e-2)
    for asked, expected in ((True, drafted), (False, plain)):
        for result in on_ranks(2, lambda parallel, asked=asked: logits(parallel, asked)):
            torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_bfloat16_parts_are_added_in_float32() -> None:
    values = [256.0, 1.0, 1.0, -256.0]

    def work(parallel: TensorParallel) -> Tensor:
        return parallel.all_reduce(torch.tensor([values[parallel.shard.rank]], dtype=torch.bfloat16))

    # Added in bfloat16, 256 + 1 is 256.
    assert [result.item() for result in on_ranks(4, work)] == [2.0] * 4


def test_gathers_are_in_the_order_of_the_ranks() -> None:
    def work(parallel: TensorParallel) -> tuple[Tensor, Tensor]:
        mine = torch.arange(6).view(2, 3) + 10 * parallel.shard.rank
        return parallel.all_gather(mine), parallel.join_columns(mine)

    for gathered, joined in on_ranks(2, work):
        assert gathered.tolist() == [[[0, 1, 2], [3, 4, 5]], [[10, 11, 12], [13, 14, 15]]]
        assert joined.tolist() == [[0, 1, 2, 10, 11, 12], [3, 4, 5, 13, 14, 15]]


def test_alone_a_collective_is_nothing() -> None:
    x = torch.ones(2, 3)
    alone = TensorParallel()
    assert alone.all_reduce(x) is x
    assert alone.join_columns(x) is x
    assert alone.all_gather(x).shape == (1, 2, 3)


def test_heads_that_cannot_be_divided_are_refused() -> None:
    check_tensor_parallel(CONFIG, 2)
    with pytest.raises(CheckpointError) as caught:
        check_tensor_parallel(CONFIG, 4)
    assert str(caught.value) == (
        "tp is 4, but 4 ranks do not divide num_key_value_heads (2); allowed for this checkpoint: 1, 2"
    )
    with pytest.raises(ValueError, match="3 ranks do not divide an axis of 160"):
        Shard(0, 3).part(160)


def test_one_rank_has_its_part_of_the_shapes() -> None:
    part = rank_config(CONFIG, 2)
    assert (part.num_heads, part.num_kv_heads, part.intermediate_size, part.vocab_size) == (2, 1, 96, 80)
    assert (part.hidden_size, part.head_dim) == (CONFIG.hidden_size, CONFIG.head_dim)

"""The bare model call computes what the engine's forward computes, or comparing their times would mean nothing."""

import torch

from benchmarks.bare_model import BareModel, Shape
from engine.batch import Segment
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.weights import load_draft_adapter, load_weights
from engine.executor import Executor
from engine.model.transformer import Transformer
from tests.oracle.golden_cases import GOLDEN


def test_bare_call_equals_the_engines_forward() -> None:
    torch.set_num_threads(1)
    config = ModelConfig.from_dir(GOLDEN)
    weights = load_weights(GOLDEN, config, dtype=torch.float32, device="cpu")
    model = Transformer(config, weights, load_draft_adapter(GOLDEN, config, dtype=torch.float32))
    bare = BareModel(model, sequences=4, keys=160)
    executor = Executor(model, pages=32, page_size=32)
    shapes = [
        Shape(rows=1, start=70, causal=True, drafted=False, wanted=1),
        Shape(rows=32, start=10, causal=False, drafted=True, wanted=31),
        Shape(rows=32, start=100, causal=True, drafted=False, wanted=32),
        Shape(rows=1, start=5, causal=True, drafted=False, wanted=1),
    ]
    segments = [
        Segment(
            tokens=[1] * shape.rows,
            start=shape.start,
            causal=shape.causal,
            drafted=shape.drafted,
            wanted=list(range(shape.rows - shape.wanted, shape.rows)),
            pages=list(range(1 + 5 * index, 6 + 5 * index)),
        )
        for index, shape in enumerate(shapes)
    ]
    forward = bare.lay_out(shapes)
    tokens = bare.run(forward).tolist()
    expected = executor.run(executor.batch(segments)).argmax(-1).tolist()
    # The bare call lays sequences out by their number of rows: 1, 1, 32, 32.
    single, draft, look, last = expected[:1], expected[1:32], expected[32:64], expected[64:]
    assert tokens == single + last + draft + look
    torch.testing.assert_close(bare.cache[:, 0, 70], executor.kv[:, 32 + 70], atol=1e-5, rtol=0)

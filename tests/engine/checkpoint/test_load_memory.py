"""What loading one rank of a big checkpoint needs of the host's memory, measured in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from engine.checkpoint.config import ModelConfig
from engine.checkpoint.memory import weight_bytes
from engine.checkpoint.weights import expected_tensors
from engine.group.subprocesses import ROOT
from tests.engine.checkpoint.golden import PUBLISHED

LAYERS = 4
MOST = 1.3
"""Peak memory of the whole process, Python and torch included, over the bytes of the rank's part."""
PROGRAM = """
import json, re, sys
from engine.group.wire import RankSpec
from engine.loading import load_part
spec = RankSpec(sys.argv[1], int(sys.argv[2]), sys.argv[3], 1, "gloo", "cpu", "")
model = load_part(spec, int(sys.argv[2]) - 1)
status = open("/proc/self/status").read()
print(json.dumps({"peak": int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024, "q": model.layers[-1].qkv(
    model.norm[None].repeat(2, 1)).shape[1]}))
"""


@pytest.fixture(scope="module")
def sparse_14b(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelConfig]:
    """14B's shapes with fewer layers; the file is a hole, which reads as zeros and takes no disk."""
    path = tmp_path_factory.mktemp("big")
    raw = json.loads((PUBLISHED / "14b-instruct" / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": LAYERS}))
    config = ModelConfig.from_dir(path)
    header, end = {}, 0
    for name, shape in expected_tensors(config).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path, config


@pytest.mark.parametrize(("size", "dtype"), [(2, "bfloat16"), (4, "float32")])
def test_loading_a_rank_needs_little_more_than_its_part(
    sparse_14b: tuple[Path, ModelConfig], size: int, dtype: str, record_property: pytest.RecordProperty
) -> None:
    path, config = sparse_14b
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(size), dtype],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    part = weight_bytes(config, dtype, size)
    record_property("peak_over_part", result["peak"] / part)
    print(f"tp={size} {dtype}: peak {result['peak'] / 1e9:.2f} GB, part {part / 1e9:.2f} GB")
    assert result["q"] == (4096 + 2 * 1024) // size
    assert part < result["peak"] <= MOST * part

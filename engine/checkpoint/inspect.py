"""What a checkpoint directory holds and needs, without loading it: `stepdial inspect DIR`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoint.adapter_config import ADAPTER_DIRECTORY, ADAPTER_FILE, read_adapter_config
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.headers import INDEX_FILE, SINGLE_FILE
from engine.checkpoint.memory import adapter_parameters, memory_plans, weight_bytes
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.weights import check_adapter, check_weights, expected_tensors
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from rich.console import Console

    from engine.config import Quantization


def describe(path: str | Path, dtype: str | None = None, quantization: Quantization = "none") -> dict[str, Any]:
    """Shapes, sizes, memory plans and problems of a checkpoint directory, as plain JSON.

    Args:
        dtype: what weights and K/V would be kept in; None = the checkpoint's own.
        quantization: of the layers' weights, as in `EngineConfig`.

    `weights` is `"complete"`, `"wrong"` (then `problems` says why), or `"absent"`: a directory with no model file is
    planned from its config alone. Sizes are in bytes. Raises CheckpointError where `config.json` cannot be served.
    """
    directory = Path(path)
    config = ModelConfig.from_dir(directory)
    kept = config.dtype if dtype is None else dtype
    adapter = _adapter(directory, config)
    rank = adapter["rank"] if adapter else None
    has_files = (directory / SINGLE_FILE).is_file() or (directory / INDEX_FILE).is_file()
    problems = check_checkpoint(directory, config) if has_files else []
    return {
        "path": str(directory),
        "architecture": config.architectures[0],
        "weights": "absent" if not has_files else "wrong" if problems else "complete",
        "problems": problems,
        "parameters": config.parameter_count,
        "tensors": len(expected_tensors(config)),
        "config": _config(config),
        "dtype": kept,
        "quantization": quantization,
        "weight_bytes": weight_bytes(config, kept, quantization=quantization),
        "kv_bytes_per_token": config.kv_bytes_per_token(kept),
        "draft_adapter": adapter,
        "tokenizer": (directory / "tokenizer.json").is_file(),
        "memory": [asdict(plan) for plan in memory_plans(config, kept, rank, quantization)],
    }


def check_checkpoint(path: str | Path, config: ModelConfig) -> list[str]:
    """Every problem of a checkpoint's weights, draft adapter and tokenizer, found without reading a tensor."""
    problems = list(check_weights(path, config).problems)
    adapter = check_adapter(path, config)
    if adapter is not None:
        problems += [f"{ADAPTER_DIRECTORY}: {problem}" for problem in adapter[0].problems]
    try:
        tokenizer = Tokenizer.from_dir(path)
    except CheckpointError as error:
        problems.append(str(error))
    else:
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            problems.append(
                f"tokenizer.json has ids up to {tokenizer.vocab_size - 1}, vocab_size is {config.vocab_size}"
            )
    return problems


def render(description: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `describe` returned, for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    config, rope = description["config"], description["config"]["rope"]
    adapter = description["draft_adapter"]
    eos = " and ".join(str(token) for token in config["eos_token_ids"])
    facts = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("parameters", f"{description['parameters']:,} in {description['tensors']} tensors"),
        ("layers", f"{config['num_layers']} of hidden {config['hidden_size']}, inner {config['intermediate_size']}"),
        ("heads", f"{config['num_heads']} query, {config['num_kv_heads']} K/V, {config['head_dim']} wide"),
        ("vocabulary", f"{config['vocab_size']:,}, EOS {eos}, mask {config['mask_token_id']}"),
        ("context", f"{config['max_position_embeddings']:,} tokens; block size {config['block_size']}"),
        ("rope", f"theta {rope['theta']:g}, YaRN factor {rope['factor']:g}"),
        (
            "weights",
            f"{_size(description['weight_bytes'])} in {description['dtype']}"
            f"{' and fp8' if description['quantization'] == 'fp8' else ''}; {_WORDS[description['weights']]}",
        ),
        ("K/V", f"{description['kv_bytes_per_token']:,} bytes per token"),
        ("draft adapter", f"rank {adapter['rank']}, {adapter['parameters']:,} parameters" if adapter else "none"),
        ("tokenizer", "yes" if description["tokenizer"] else "none: token ids in and out"),
    ):
        facts.add_row(name, escape(value))
    memory = Table(title="What fits (tokens of K/V beside the weights)", title_justify="left")
    for heading in ("card", "ranks", "weights per rank", "K/V per token and rank", "tokens"):
        memory.add_column(heading, justify="right")
    for plan in description["memory"]:
        tokens = f"{plan['tokens']:,}" if plan["tokens"] else "does not fit"
        ranks, per_token = str(plan["tensor_parallel"]), f"{plan['kv_bytes_per_token']:,} B"
        memory.add_row(plan["card"], ranks, _size(plan["weight_bytes"]), per_token, tokens)
    console.print(f"[bold]{escape(description['path'])}[/bold]  {escape(description['architecture'])}")
    console.print(facts, memory, sep="\n")
    for problem in description["problems"]:
        console.print(f"[red]problem[/red]  {escape(problem)}")


_WORDS = {
    "complete": "all names and shapes are as the config says",
    "wrong": "see the problems below",
    "absent": "no model file here, planned from config.json alone",
}


def _config(config: ModelConfig) -> dict[str, Any]:
    lists = {"architectures": list(config.architectures), "eos_token_ids": list(config.eos_token_ids)}
    return {**asdict(config), **lists}


def _adapter(directory: Path, config: ModelConfig) -> dict[str, Any] | None:
    """Rank, scale and size of the draft adapter as its config gives them; None without a usable one."""
    if not (directory / ADAPTER_DIRECTORY).is_dir():
        return None
    rank, scale = read_adapter_config(directory / ADAPTER_DIRECTORY, [])
    if rank is None:
        return None
    has_file = (directory / ADAPTER_DIRECTORY / ADAPTER_FILE).is_file()
    return {"rank": rank, "scale": scale, "parameters": adapter_parameters(config, rank), "has_file": has_file}


def _size(count: int) -> str:
    """Bytes in decimal units, as cards and checkpoints are sold."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"

"""The shipped checkpoint is one of the family, and the training forward is the family's forward."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import Ministral3Config, Ministral3ForCausalLM

import engine.tiny
from engine.tiny.export import load
from engine.tiny.objective import clean_row, collate
from engine.tiny.tasks import FAMILIES, generate
from engine.tiny.tokenizer import EOS_ID, render

CHECKPOINT = Path(engine.tiny.__file__).parent / "checkpoint"
CONFIG = json.loads((CHECKPOINT / "config.json").read_text())


def expected_shapes() -> dict[str, list[int]]:
    """Contract 2.1, from the config alone."""
    hidden, inner, vocabulary = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    queries = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    keys = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    shapes = {"encoder.embed_tokens.weight": [vocabulary, hidden], "encoder.norm.weight": [hidden]}
    shapes["diffusion_head.weight"] = [vocabulary, hidden]
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layers.{index}"
        shapes |= {
            f"{layer}.input_layernorm.weight": [hidden],
            f"{layer}.post_attention_layernorm.weight": [hidden],
            f"{layer}.self_attn.q_proj.weight": [queries, hidden],
            f"{layer}.self_attn.k_proj.weight": [keys, hidden],
            f"{layer}.self_attn.v_proj.weight": [keys, hidden],
            f"{layer}.self_attn.o_proj.weight": [hidden, queries],
            f"{layer}.mlp.gate_proj.weight": [inner, hidden],
            f"{layer}.mlp.up_proj.weight": [inner, hidden],
            f"{layer}.mlp.down_proj.weight": [hidden, inner],
        }
    return shapes


def test_tensors_are_the_familys_in_bfloat16() -> None:
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, a file is no dict
        assert {name: part.get_shape() for name, part in slices.items()} == expected_shapes()
        assert {part.get_dtype() for part in slices.values()} == {"BF16"}
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 40e6


def test_config_has_the_keys_and_ids_of_the_family() -> None:
    fixed = {
        "architectures": ["NemotronLabsDiffusionModel"],
        "model_type": "nemotron_labs_diffusion",
        "block_size": 32,
        "mask_token_id": 100,
        "bos_token_id": 1,
        "eos_token_id": 11,
        "tie_word_embeddings": False,
        "dlm_paradigm": "bidirectional",
        "hidden_act": "silu",
    }
    assert {key: CONFIG[key] for key in fixed} == fixed
    assert CONFIG["max_position_embeddings"] >= 1024
    assert CONFIG["rope_parameters"]["rope_type"] == "yarn"
    assert CONFIG["rope_parameters"]["llama_4_scaling_beta"] == 0.1


@pytest.fixture(scope="module")
def oracle() -> Ministral3ForCausalLM:
    """transformers' Ministral-3 with the shipped weights (contract 11)."""
    keys = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    )  # fmt: skip
    model = Ministral3ForCausalLM(Ministral3Config(**{key: CONFIG[key] for key in keys}, tie_word_embeddings=False))
    weights = {}
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            theirs = "lm_head.weight" if name == "diffusion_head.weight" else name.replace("encoder.", "model.")
            weights[theirs] = file.get_tensor(name).float()
    model.load_state_dict(weights)
    return model.float().eval()


def test_training_forward_is_ministral3_causal_and_bidirectional(oracle: Ministral3ForCausalLM) -> None:
    network = load(CHECKPOINT)
    length = 600  # past 256 and 512, where the query scale changes
    ids = torch.randint(101, 700, (2, length), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).expand(2, -1)
    with torch.inference_mode():
        for mask in (None, torch.ones(2, 1, length, length, dtype=torch.bool)):
            theirs = oracle(ids, attention_mask=None if mask is None else torch.zeros(2, 1, length, length)).logits
            ours = network.diffusion_head(network(ids, positions, mask)[0])
            assert (ours - theirs).abs().max() < 2e-3 * theirs.abs().max()
            assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.999


def test_shipped_weights_answer_most_unseen_tasks(oracle: Ministral3ForCausalLM) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    tasks = list(generate("test", 64, 11))
    assert len({task.task for task in tasks}) == len(FAMILIES)
    right = 0
    for task in tasks:
        prompt = tokenizer.encode(render(task.messages), add_special_tokens=False).ids
        answer = [*tokenizer.encode(task.answer, add_special_tokens=False).ids, EOS_ID]
        batch = collate([clean_row(prompt, answer)], multiple=1)
        with torch.inference_mode():
            best = oracle(batch.ids).logits.argmax(-1)[0, len(prompt) - 1 : -1]
        right += best.tolist() == answer
    assert right >= 0.8 * len(tasks)

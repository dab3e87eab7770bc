"""Builds the tokenizer of the small model: the family's special ids and chat template, bytes, and the tasks' words.

`python -m engine.tiny.tokenizer DIR` writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and
chat_template.jinja into DIR.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from engine.tiny.tasks import Message
from engine.tiny.tasks.lexicon import CITIES, CLASSES, COLORS, FIELDS, JOBS, NAMES, NOUNS

# Ids of the family (contract 6); 100 is the mask, which no text ever becomes.
SPECIALS = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>", 12: "<think>", 13: "</think>"}
BOS_ID, EOS_ID, MASK_ID = 1, 11, 100

# One piece is a word with its leading space, a digit, a line break with the indentation after it, a run of
# punctuation, or a blank. A piece that is no token of its own falls back to its bytes.
PIECE = r" ?[A-Za-z]+|[0-9]|\n *| ?[^\sA-Za-z0-9]+|\s"

# Words that start a text or a line, words within one, and runs of punctuation: what the tasks' templates need.
FIRST_WORDS = """
    Add Copy Noted Reverse Sort The What Where Who Write append assert assistant city class color def for if in
    init item job print read return self system the user while with
""".split()  # noqa: SIM905
INNER_WORDS = """
    JSON a and as bought but buy by carry city class code color column did facts fields fills for gap get
    getters in is list lives max numbers of open pairs range self set text the these this to was went with words
    write
""".split()  # noqa: SIM905
PUNCTUATION = (
    '",', '":', '"}', '()', '(____)', '):', '__(', '____', '{"', '\n    ', '\n        ', ' "', ' *', ' +',
    ' +=', ' -', ' <', ' =', ' ==', ' >', ' [', ' __', ' ____', ' ____.', ' {',
)  # fmt: skip

# Thinking off renders an empty thought; on leaves it open. The system turn is there even when it is empty (contract 6).
CHAT_TEMPLATE = """\
{%- set enable_thinking = enable_thinking if enable_thinking is defined else False -%}
{%- set truncate = truncate_history_thinking if truncate_history_thinking is defined else True -%}
{%- set first = namespace(at=0, system='') -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set first.at = 1 -%}
{%- set first.system = messages[0]['content'] -%}
{%- endif -%}
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- '<|im_start|>system\\n' + first.system + '<|im_end|>\\n' -}}
{%- for message in messages[first.at:] -%}
{%- set content = message['content'] -%}
{%- if message['role'] == 'assistant' -%}
{%- if '</think>' in content and truncate and loop.index0 + first.at < last.user -%}
{%- set content = '<think></think>' + content.split('</think>')[-1].lstrip('\\n') -%}
{%- elif '<think>' not in content and '</think>' not in content -%}
{%- set content = '<think></think>' + content -%}
{%- endif -%}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' + ('<think>\\n' if enable_thinking else '<think></think>') -}}
{%- endif -%}
"""


def render(messages: list[Message]) -> str:
    """The prompt of a chat without thinking, as the chat template renders it, without running a template engine."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = [f"<|im_start|>system\n{system}<|im_end|>\n"]
    for message in messages[1:] if messages[0]["role"] == "system" else messages:
        thought = "<think></think>" if message["role"] == "assistant" else ""
        turns.append(f"<|im_start|>{message['role']}\n{thought}{message['content']}<|im_end|>\n")
    return "".join(turns) + "<|im_start|>assistant\n<think></think>"


def special_tokens() -> list[str]:
    """The 100 tokens of ids 0 to 99, in order; those without a meaning are reserved."""
    return [SPECIALS.get(index, f"<SPECIAL_{index}>") for index in range(MASK_ID)]


def byte_level_of(split: pre_tokenizers.Split) -> pre_tokenizers.Sequence:
    """`split`, then bytes written as printable characters."""
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def words() -> list[str]:
    """Every piece that the tasks are made of and that is longer than a byte, in the byte-level alphabet, sorted."""
    both = [*NAMES, *CITIES, *COLORS, *JOBS, *NOUNS, *FIELDS]
    inner = [f" {word}" for word in [*both, *CLASSES, *INNER_WORDS]]
    pieces = {*both, *FIRST_WORDS, *inner, *PUNCTUATION}
    return sorted(piece.replace(" ", "\u0120").replace("\n", "\u010a") for piece in pieces)


def build(lexicon: list[str]) -> Tokenizer:
    """A tokenizer with the special ids, 256 bytes from id 101 on, then `lexicon`."""
    vocabulary = {token: index for index, token in enumerate(special_tokens())}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    for piece in [*alphabet, *lexicon]:
        vocabulary[piece] = len(vocabulary) + 1  # one more than the count: nothing has the mask's id
    # ignore_merges makes a known piece one token without merges that would lead to it.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", ignore_merges=True))
    tokenizer.pre_tokenizer = byte_level_of(pre_tokenizers.Split(Regex(PIECE), behavior="isolated"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
    )
    return tokenizer


def write(tokenizer: Tokenizer, directory: Path, context: int) -> None:
    """The four tokenizer files of a checkpoint; `context` is the longest input in tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "special_tokens_map.json").write_text(json.dumps(named, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


if __name__ == "__main__":
    write(build(words()), Path(sys.argv[1]), context=4096)

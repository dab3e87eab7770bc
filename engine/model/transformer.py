"""The Ministral-3 style decoder of the family, as plain tensors and functions (contract 3.1).

One `forward` serves every mode: the batch says per token where it stands, what it may see and whether the draft
adapter applies. There is no mode switch in here. On several ranks each holds its part of every layer and of the
vocabulary (`engine/model/parallel.py`); all of them run the same `forward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.fixed_linear import FixedLinear
from engine.model.fp8_linear import Fp8Linear
from engine.model.linear import Linear, rows_of_all
from engine.model.narrow_linear import NarrowLinear
from engine.model.parallel import TensorParallel, rank_config
from engine.model.rope import Rotations
from kernels.activation import swiglu_torch, swiglu_triton
from kernels.attention import reach_attention
from kernels.combine import combine, finish
from kernels.denoise_head import denoise_head, head_partials
from kernels.fixed_product import fixed_product
from kernels.norm import add_and_norm_torch, add_and_norm_triton, rms_norm
from kernels.reach_attention import reach_attention_triton
from kernels.rope_and_kv import rope_and_kv_torch, rope_and_kv_triton
from kernels.row_statistics import RowRules, Statistics
from kernels.switch import use_triton

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.batch import ForwardBatch
    from engine.checkpoint.config import ModelConfig
    from engine.checkpoint.weights import DraftAdapter, Weights


Product = Linear | Fp8Linear | FixedLinear | NarrowLinear


@dataclass(slots=True)
class Layer:
    """Weights of one decoder layer; q, k, v and gate, up are stacked, so that each of the two is one product.

    Sizes are those of one rank's part.
    """

    input_norm: Tensor  # [hidden]
    qkv: Product  # hidden -> q_size + 2 kv_size
    output: Product  # q_size -> hidden
    post_norm: Tensor  # [hidden]
    gate_up: Product  # hidden -> 2 intermediate
    down: Product  # intermediate -> hidden

    @property
    def products(self) -> tuple[Product, ...]:
        return self.qkv, self.output, self.gate_up, self.down

    def inner(self, x: Tensor, swiglu: Callable[[Tensor], Tensor]) -> Tensor:
        """The MLP before its last product, `x` `[rows, hidden]` to `[rows, intermediate]`; `swiglu`: the pass for those
        products that do not have it in them."""
        return self.gate_up.gated(x) if isinstance(self.gate_up, NarrowLinear) else swiglu(self.gate_up(x))


class Transformer:
    """Embedding, decoder layers, final norm and the one head that AR and diffusion share.

    Attributes:
        config: the shapes of this rank's part: its heads, its part of MLP and vocabulary (alone: the checkpoint's).
        parallel: this rank's place in its group.
        first_token: the id of the first row of this rank's part of embedding and head.
        rows: of a batch, for all products (`engine/model/linear.py`).
        rotations: of the batches' positions; where kernels run, from a table of all that the checkpoint has.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        adapter: DraftAdapter | None = None,
        parallel: TensorParallel | None = None,
        product: type[Product] = Linear,
    ) -> None:
        """Takes `config` of the whole model and this rank's `weights` and `adapter` (`engine/checkpoint/weights.py`).

        `product` makes those of the layers. In FP8 embedding, head, norms and adapter stay as they are; fixed ones let
        no row depend on its batch, so the head's and the adapter's are fixed too.
        Tensors are popped one after the other, the big tables first, so that no second copy of the model is held.
        """
        self.parallel = parallel or TensorParallel()
        shard = self.parallel.shard
        config = config if shard.size == 1 else rank_config(config, shard.size)
        self.config = config
        self.adapter = adapter
        self.fixed = product is FixedLinear
        self.first_token = shard.rank * config.vocab_size
        self.embedding = weights.pop("encoder.embed_tokens.weight")  # [vocab, hidden]
        self.norm = weights.pop("encoder.norm.weight")
        # Kernels draw the noise of four ids together, so that a part of the vocabulary has to begin with such a group.
        self.head_by_kernels = use_triton(self.embedding) and (shard.size == 1 or config.vocab_size % 4 == 0)
        self.head = Linear(weights.pop("diffusion_head.weight"), self.head_by_kernels)  # hidden -> vocab
        self.layers = [_layer(weights, f"encoder.layers.{index}.", product) for index in range(config.num_layers)]
        products: list[Product] = [self.head, *(product for layer in self.layers for product in layer.products)]
        self.rows = rows_of_all(product.rows for product in products)
        kept = config.max_position_embeddings if use_triton(self.embedding) else None
        self.rotations = Rotations(config.rope, config.head_dim, self.dtype, self.device, kept)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def forward(self, batch: ForwardBatch, kv: Tensor) -> Tensor:
        """Runs all tokens of a batch and writes their K/V.

        Args:
            batch: see `engine/batch.py`.
            kv: `[layers, slots, 2, kv_heads, head_dim]`, written at the batch's slots before it is read.

        Returns the last layer's output `[tokens, hidden]`, before the final norm.
        """
        config = self.config
        heads = config.num_heads
        scale = config.head_dim**-0.5
        eps = config.rms_norm_eps
        # Decided with the batch's layout, once for all kernels (`kernels/switch.py`).
        if batch.work is None:
            add_and_norm, rope_and_kv, swiglu = add_and_norm_torch, rope_and_kv_torch, swiglu_torch
        else:
            add_and_norm, rope_and_kv, swiglu = add_and_norm_triton, rope_and_kv_triton, swiglu_triton
        rotation = self.rotations.at(batch.positions, batch.last_position)
        x = self._embed(batch.token_ids)
        change: Tensor | None = None
        for index, layer in enumerate(self.layers):
            cache = kv[index]
            x, normed = add_and_norm(x, change, layer.input_norm, eps)
            query = rope_and_kv(layer.qkv(normed), rotation, batch.slots, cache, heads)
            if batch.work is not None:
                attended = reach_attention_triton(query, cache, batch.work, heads, scale)
            else:
                attended = reach_attention(query, cache, batch.groups, scale)
            change = self.parallel.all_reduce(self._output(index, layer, attended, batch))
            x, normed = add_and_norm(x, change, layer.post_norm, eps)
            change = self.parallel.all_reduce(layer.down(layer.inner(normed, swiglu)))
        return x if change is None else x + change

    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Final norm and head over the wanted `rows` `[r]` of `forward`'s result: `[r, vocab]`, on every rank."""
        return self.parallel.join_columns(self.head(self._final_norm(hidden, rows)))

    def statistics(self, hidden: Tensor, rows: Tensor, rules: RowRules) -> Statistics:
        """What `logits` would show of the same rows, without holding them, on every rank; where kernels run.

        Of several ranks each looks at its part of the vocabulary, and they exchange a few numbers for each row.

        Raises RuntimeError where the head's weight lies as the CPU's products want it.
        """
        weight = self.head.weight
        normed = self._final_norm_by_kernel(hidden, rows)
        if self.parallel.shard.size == 1 or not len(rows):
            return denoise_head(normed, weight, rules, self.fixed)
        mine = combine(head_partials(normed, weight, rules, self.first_token, self.fixed), rules)
        parts = self.parallel.join_columns(mine.flatten(0, 1))
        return finish(parts.view(*mine.shape[:2], -1), rules)

    def _final_norm(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return rms_norm(hidden.index_select(0, rows), self.norm, self.config.rms_norm_eps)

    def _final_norm_by_kernel(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """One launch after the gather, where PyTorch's form takes eight."""
        return add_and_norm_triton(hidden.index_select(0, rows), None, self.norm, self.config.rms_norm_eps)[1]

    def _embed(self, token_ids: Tensor) -> Tensor:
        """Rows of the embedding `[tokens, hidden]`: each rank looks up the ids in its part, the others are zero."""
        if self.parallel.shard.size == 1:
            return F.embedding(token_ids, self.embedding)
        local = token_ids - self.first_token
        mine = (local >= 0) & (local < self.config.vocab_size)
        found = F.embedding(local.masked_fill(~mine, 0), self.embedding)
        return self.parallel.all_reduce(found.masked_fill_(~mine[:, None], 0))

    def _output(self, index: int, layer: Layer, attended: Tensor, batch: ForwardBatch) -> Tensor:
        """o_proj, with the low-rank draft weights added on draft rows only (contract 2.2): this rank's part of the sum.

        A is cut like o_proj's inputs and B is whole, so the update needs no sum of its own.
        """
        out = layer.output(attended)
        if batch.draft_count == 0 or self.adapter is None:
            return out
        down, up = self.adapter.layers[index]
        times = fixed_product if self.fixed else F.linear
        # With a mask the shapes do not depend on how many rows are drafts, as a graph needs it. Elsewhere the rows are
        # padded like every product, so that their bits do not depend on it.
        mask, rows = batch.draft_mask, batch.draft_rows
        drafted = attended if rows is None else attended.index_select(0, rows)
        delta = times(times(drafted.to(down.dtype), down), up)
        if mask is not None:
            return out.addcmul_(delta.to(out.dtype), mask, value=self.adapter.scale)
        delta = (delta * self.adapter.scale).to(out.dtype)
        return out if rows is None else out.index_add_(0, rows[: batch.draft_count], delta[: batch.draft_count])


def _layer(weights: Weights, prefix: str, product: type[Product]) -> Layer:
    def take(name: str) -> Tensor:
        return weights.pop(f"{prefix}{name}.weight")

    return Layer(
        input_norm=take("input_layernorm"),
        qkv=product(torch.cat([take(f"self_attn.{name}_proj") for name in "qkv"])),
        output=product(take("self_attn.o_proj")),
        post_norm=take("post_attention_layernorm"),
        gate_up=product(torch.cat([take("mlp.gate_proj"), take("mlp.up_proj")])),
        down=product(take("mlp.down_proj")),
    )

"""Logits of the next token, again and again, with a cache of keys and values.

A prompt goes through the model at once (prefill), then each token alone (decode). Rows may have
prompts of unequal length: they stand at the left, and what stands right of a row's last token is
overwritten, or masked.

On a GPU nothing here waits for it: lengths are counted on the host, ids are read when a row needs
them there, and what is not finite is told by whoever reads (sampling.generate()).

Shape letters: B rows, T tokens of the longest prompt, S tokens in the cache, C = n_embd,
H = n_head, K = heads of keys and values, D = C / H, F = width of the MLP, V = ids that the
tokenizer has.

A prompt is one document: what intra_document asks for makes no difference to it.

Sources: Pope et al. 2022, "Efficiently Scaling Transformer Inference", §3 (the cache); Dettmers et
al. 2022, "LLM.int8()", §2 (a scale for each row of a matrix).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_dist.devices import pick_dtype, set_matmul_precision, set_up_cpu
from nanogpt_dist.errors import DivergedError
from nanogpt_dist.generation.last_token import LastToken
from nanogpt_dist.generation.static_step import StaticStep, cache_length
from nanogpt_dist.model.attention import attention, cached_attention, cpu_attention
from nanogpt_dist.model.gpt import GPT, Block
from nanogpt_dist.model.head_loss import squashed
from nanogpt_dist.model.kernels import has_plain_heads
from nanogpt_dist.model.positions import SequencePositions, with_rotary_angles

Linear = Callable[[Tensor], Tensor]
Place = tuple[slice | Tensor, slice, int | Tensor]  # rows, heads, positions of a cache
FEW_ROWS = 16  # up to which products with int8 weights are faster than with what they stand for
WEIGHTS = ("auto", "float32", "bfloat16", "int8")


def pick_weights(name: str, device: torch.device, greedy: bool) -> str:
    """The format of the weights that `name`, one of WEIGHTS, stands for.

    auto: bfloat16 where the device is fast in it, but float32 for greedy choices, which are exact.
    Raises ConfigError for a format that the device does not have.
    """
    if name != "auto":
        pick_dtype("float32" if name == "float32" else "bfloat16", device)  # refuses
        return name
    fast = not greedy and pick_dtype("auto", device) == torch.bfloat16
    return "bfloat16" if fast else "float32"


class Decoder:
    """A model's matrices in one number format, and the caches of the rows at work.

    weights: float32, bfloat16, or int8 (matrices only, with a scale for each row; activations are
    bfloat16). LayerNorms, the residual stream and the logits are float32. n_vocab: logits of ids
    from there on are not computed. cuda_graphs: on CUDA, record a decode step and replay it.
    """

    def __init__(
        self,
        model: GPT,
        n_vocab: int,
        weights: str = "float32",
        cuda_graphs: bool = True,
    ) -> None:
        self.model, self.config, self.weights = model, model.config, weights
        self.cuda_graphs = cuda_graphs
        self.device = model.lm_head.weight.device
        if self.device.type == "cpu":
            set_up_cpu()
        self.dtype = torch.float32 if weights == "float32" else torch.bfloat16
        # A CPU attends to a cache in float32 in half the time.
        self.cache_dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        on_cpu = self.device.type == "cpu" and has_plain_heads(self.config)
        self.prefill_attention = cpu_attention if on_cpu else attention
        self.layers = [_Layer(block, weights, self.dtype) for block in model.transformer.h]
        self.head = _linear(model.lm_head.weight[:n_vocab], None, weights, self.dtype)
        self.lengths: list[int] = []  # of each row, in tokens
        self.rows: list[list[int]] = []  # ids of each row, but for those of `unread`
        self.unread: list[Tensor] = []  # (B,) each, the newest ids
        self.left = 0  # steps that are to come
        self.static_step: StaticStep | None = None  # on CUDA
        self.keys: list[Tensor] = []  # of each layer (B, K, S, D)
        self.values: list[Tensor] = []
        self.window = self.config.shortest_window  # tokens that a short layer attends to
        self.last_token: LastToken | None = None  # where an embedding reads the token before

    @property
    def weight_bytes(self) -> int:
        """Bytes of a number of a matrix, as it is in memory."""
        if self.weights == "int8" and self.device.type == "cpu":
            return 1
        return self.dtype.itemsize

    @property
    def format(self) -> str:
        """The format of the weights, for a message."""
        in_bf16 = self.weights == "int8" and self.weight_bytes > 1
        return "int8, held in bfloat16" if in_bf16 else self.weights

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor:
        """Logits after each prompt: (B, V).

        No prompt is empty; of a long one the last block_size tokens count. Raises BadDataError for
        an id without a row in the token embedding.
        """
        block_size = self.config.block_size
        self.model.refuse_unknown(max(map(max, prompts)))
        set_matmul_precision(self.device, str(self.dtype).removeprefix("torch."))
        self.rows, self.unread = [list(prompt) for prompt in prompts], []
        self.lengths, self.left = list(map(len, self.rows)), max_new_tokens - 1
        contexts = [tuple(row[-block_size:]) for row in self.rows]
        self._make_caches(min(max(self.lengths) + max_new_tokens, block_size))
        if self.static_step is not None:
            self.static_step.begin(list(map(len, contexts)))
        # several samples after one prompt: it is read once
        distinct = list(dict.fromkeys(contexts))
        which = torch.tensor([distinct.index(context) for context in contexts], device=self.device)
        return self._prefill(distinct, which)[which]

    def _make_caches(self, tokens: int) -> None:
        """Empty caches with room for `tokens`; on CUDA those at hand if they are of that size."""
        on_cuda, rows = self.device.type == "cuda", len(self.rows)
        S = cache_length(tokens, self.config.block_size) if on_cuda else tokens
        shape = (rows, self.config.kv_heads, S, self.config.head_size)
        if on_cuda and self.keys and self.keys[0].shape == shape:
            torch._foreach_zero_([*self.keys, *self.values])
            return
        self.static_step = None  # its graphs hold the caches
        if self.config.smear or self.config.bigram_rows is not None:
            self.last_token = LastToken(rows, self.model.transformer, self.device)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=self.cache_dtype, device=self.device) for _ in self.layers]
            for _ in range(2)
        )
        if on_cuda:
            self.static_step = StaticStep(rows, S, self.device, self.cuda_graphs)

    @torch.inference_mode()
    def next(self, ids: Tensor) -> Tensor:
        """Append an id to each row, (B,) int64; returns the logits that follow (B, V)."""
        self.unread.append(ids)
        self.left -= 1
        self.lengths = [length + 1 for length in self.lengths]
        full = [i for i, length in enumerate(self.lengths) if length > self.config.block_size]
        if len(full) == len(self.rows):
            return self._without_cache(full)
        logits = self._decode(ids)
        if full:
            logits[full] = self._without_cache(full)
        return logits

    def all_ids(self) -> list[list[int]]:
        """The ids of each row so far; waits for the device where some have not been read."""
        if self.unread:
            new = torch.stack(self.unread, 1).tolist()  # (B, number of them)
            self.rows = [row + more for row, more in zip(self.rows, new, strict=True)]
            self.unread = []
        return self.rows

    def _without_cache(self, which: list[int]) -> Tensor:
        """Logits of rows longer than block_size: (number of rows, V).

        All positions have moved on, so that no cache is of use.
        """
        rows = self.all_ids()
        return self._prefill([tuple(rows[i][-self.config.block_size :]) for i in which], None)

    def _prefill(self, contexts: Sequence[Sequence[int]], rows: Tensor | None) -> Tensor:
        """Logits after each context: (B, V).

        rows: the context of each row of the caches; None: fill no cache.
        """
        lengths = torch.tensor([len(context) for context in contexts], device=self.device)
        T = max(map(len, contexts))
        ids = torch.tensor(
            [[*context, *[0] * (T - len(context))] for context in contexts], device=self.device
        )
        positions = with_rotary_angles(torch.arange(T, device=self.device), self.config)
        x = self._embed_prompts(ids, positions, lengths, rows)  # (B, T, C)
        x0 = x if self.config.residual_scalars else None
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            x = layer.block.mixed(x, x0)
            # (B, H, T, D), 2 × (B, K, T, D)
            q, k, v = layer.heads(layer.qkv(x), positions, ids)
            if rows is not None:
                keys[:, :, :T], values[:, :, :T] = k[rows], v[rows]
            y = self.prefill_attention(q, k, v, None, 0.0, layer.window)  # (B, H, T, D)
            x = layer.after_attention(x, layer.join_heads(y))
        return self._logits(x[torch.arange(len(contexts), device=self.device), lengths - 1])

    def _decode(self, ids: Tensor) -> Tensor:
        """Logits after one more token of each row, which self.lengths counts already: (B, V)."""
        ends = [min(length, self.config.block_size) for length in self.lengths]
        if self.static_step is not None:
            left = min(self.left, self.config.block_size - min(ends))
            return self.static_step(self._decode_static, ids, max(ends), left)
        S, mask = max(ends), None
        last = torch.tensor(ends, device=self.device) - 1  # (B,)
        place: Place = (slice(None), slice(None), S - 1)
        if min(ends) < S:
            # (B, 1, 1, S)
            mask = (torch.arange(S, device=self.device) <= last[:, None])[:, None, None]
            place = (torch.arange(len(ends), device=self.device), slice(None), last)
        near = S if self.window is None else min(self.window, S)
        short = mask
        if mask is not None and near < S:
            short = (
                mask & (torch.arange(S, device=self.device) > last[:, None] - near)[:, None, None]
            )
        return self._one_token(ids, last, place, S, mask, short)

    def _decode_static(self, ids: Tensor, last: Tensor, S: int) -> Tensor:
        """_decode() over the first S of the caches, whatever the rows' lengths: (B, V).

        last: position of each row's new id, (B,). Of all operations shapes and addresses are the
        same each time, and none waits for the device.
        """
        each = torch.arange(len(ids), device=self.device)
        behind = torch.arange(S, device=self.device) > last[:, None]  # (B, S)
        mask = torch.zeros(behind.shape, dtype=self.cache_dtype, device=self.device)
        mask = mask.masked_fill(behind, float("-inf"))[:, None, None]  # (B, 1, 1, S), added
        short = mask
        if self.window is not None and self.window < S:
            left = torch.arange(S, device=self.device) <= last[:, None] - self.window  # (B, S)
            short = mask.masked_fill(left[:, None, None], float("-inf"))
        return self._one_token(ids, last, (each, slice(None), last), S, mask, short)

    def _one_token(
        self,
        ids: Tensor,
        last: Tensor,
        place: Place,
        S: int,
        mask: Tensor | None,
        short: Tensor | None,
    ) -> Tensor:
        """Logits after one id of each row, at the positions `last`, (B,): (B, V).

        place: where in a cache it goes. Attention is over the first S of the caches, as far as
        `mask` lets it, in layers with a window `short`; None: all, or the last in the window.
        """
        positions = with_rotary_angles(last[:, None], self.config)
        x = self._embed_next(ids, last)  # (B, 1, C)
        x0 = x if self.config.residual_scalars else None
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            x = layer.block.mixed(x, x0)
            # (B, H, 1, D), 2 × (B, K, 1, D)
            q, k, v = layer.heads(layer.qkv(x).to(self.cache_dtype), positions, ids[:, None])
            keys[place], values[place] = k[:, :, 0], v[:, :, 0]
            first, seen = 0, mask if layer.window is None else short
            if layer.window is not None and short is None:  # rows are of one length
                first = max(0, S - layer.window)
            # (B, H, 1, D)
            y = cached_attention(q, keys[:, :, first:S], values[:, :, first:S], seen)
            x = layer.after_attention(x, layer.join_heads(y).to(self.dtype))
        return self._logits(x[:, 0])

    def _embed_prompts(
        self,
        ids: Tensor,
        positions: SequencePositions,
        lengths: Tensor,
        rows: Tensor | None,
    ) -> Tensor:
        """What goes into the first block: (B, T) → (B, T, C); rows as in _prefill()."""
        if self.last_token is None:
            return self.model.transformer.embed(ids, positions.position_ids)
        return self.last_token.embed_prompts(ids, positions, lengths, rows)

    def _embed_next(self, ids: Tensor, last: Tensor) -> Tensor:
        """The same of one id of each row, at the positions `last`: (B,) → (B, 1, C)."""
        if self.last_token is None:
            return self.model.transformer.embed(ids[:, None], last[:, None])
        return self.last_token.embed_next(ids, last)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.head(self.model.transformer.ln_f(x).to(self.dtype)).float()  # (B, V)
        if self.config.logit_softcap is not None:
            logits = squashed(logits, self.config.logit_softcap)
        # elsewhere to look would be to wait
        if self.device.type == "cpu" and not torch.isfinite(logits).all():
            raise DivergedError
        return logits


class _Layer:
    """A block before and after its attention; x is (B, T, C), in float32."""

    def __init__(self, block: nn.Module, weights: str, dtype: torch.dtype) -> None:
        assert isinstance(block, Block)
        self.block, self.dtype, self.window = block, dtype, block.attn.window
        self.c_attn, self.attn_proj, self.c_fc, self.mlp_proj = (
            _linear(each.weight, each.bias, weights, dtype)
            for each in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        )

    def qkv(self, x: Tensor) -> Tensor:
        """Before attention: (B, T, C) → (B, T, (H + 2K)·D)."""
        return self.c_attn(self.block.ln_1(x).to(self.dtype))  # (B, T, (H + 2K)·D)

    def heads(
        self,
        qkv: Tensor,
        positions: SequencePositions,
        idx: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (B, T, (H + 2K)·D) → (B, H, T, D), 2 × (B, K, T, D)."""
        return self.block.attn.heads(qkv, positions, idx)

    def join_heads(self, y: Tensor) -> Tensor:
        """(B, H, T, D) → (B, T, C)."""
        return y.transpose(1, 2).flatten(2)

    def after_attention(self, x: Tensor, y: Tensor) -> Tensor:
        """The rest of the block; x, y: its input and attention's output, (B, T, C) each."""
        x = x + self.attn_proj(y)
        h = self.c_fc(self.block.ln_2(x).to(self.dtype))  # (B, T, F), of swiglu 2F
        return x + self.mlp_proj(self.block.mlp.act(h))


def _linear(weight: Tensor, bias: Tensor | None, weights: str, dtype: torch.dtype) -> Linear:
    """x → x weightᵀ + bias, with the weight in its format."""
    bias = None if bias is None else bias.detach().to(dtype)
    if weights != "int8":
        return _packed(weight.detach().to(dtype), bias)
    scale = weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (out, 1)
    whole = (weight.detach() / scale).round().to(torch.int8)
    product = _int8_product(whole, scale[:, 0].to(dtype))
    return product if bias is None else lambda x: product(x) + bias


def _packed(weight: Tensor, bias: Tensor | None) -> Linear:
    """F.linear; a bfloat16 weight on a CPU is kept in the order that oneDNN reads fastest.

    That takes a quarter off a product with one row. The operators of torch's are private: without
    them, as ever.
    """
    pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    multiply = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.bfloat16
        or pack is None
        or multiply is None
    ):
        return lambda x: F.linear(x, weight, bias)
    try:
        packed = pack(weight, None)
        multiply(weight[:1], packed, bias, "none", [], "")
    except (RuntimeError, NotImplementedError):
        return lambda x: F.linear(x, weight, bias)
    return lambda x: multiply(x, packed, bias, "none", [], "")


def _int8_product(weight: Tensor, scale: Tensor) -> Linear:
    """The product with int8 weights, by torch's private kernel for CPUs where there is one.

    Elsewhere the whole numbers stand in bfloat16, which has them exactly: the same product, with
    the memory and the speed of bfloat16. CUDA's kernel is no faster (one thread for each number of
    the result), and to make them bfloat16 at each product would take longer than the product.
    """
    kernel = getattr(torch, "_weight_int8pack_mm", None)
    if kernel is None or weight.device.type != "cpu":
        whole = weight.to(scale.dtype)
        return lambda x: F.linear(x, whole) * scale

    def multiply(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        if len(rows) > FEW_ROWS:
            return F.linear(x, weight.to(x.dtype)) * scale
        return kernel(rows, weight, scale).view(*x.shape[:-1], -1)

    return multiply

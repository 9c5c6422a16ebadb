"""Run on the fake GPU by test_on_gpu.py: what sampling does there, as one JSON object."""

import gc
import json

import torch

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import DivergedError
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.generation.sampling import Settings, generate
from nanogpt_dist.model.gpt import GPT
from tests.fakecuda import record

N_VOCAB = 61
PLAIN = ModelConfig(block_size=600, vocab_size=64, n_layer=2, n_head=4, n_embd=32, bias=True)
MODERN = PLAIN.model_copy(
    update={
        **{"rotary": True, "qk_norm": True, "n_kv_head": 2, "norm": "rmsnorm", "block_size": 40},
        **{"smear": True, "bigram_rows": 100, "value_embeddings": True, "residual_scalars": True},
        **{"embedding_norm": True, "logit_softcap": 15.0},
        **{"sliding_window": 8, "window_pattern": "S"},
    }
)
GREEDY = Settings(max_new_tokens=45, temperature=0)
DRAWN = Settings(max_new_tokens=45, temperature=1.2, top_k=20, top_p=0.9)


def made(config: ModelConfig, device: str) -> GPT:
    with torch.device("meta"):
        model = GPT(config)
    model = model.to_empty(device=device).tie().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.empty(parameter.shape)
            values.normal_(
                float(parameter.ndim == 1), 0.3, generator=torch.Generator().manual_seed(len(name))
            )
            parameter.copy_(values)
    return model


def ids(decoder: Decoder, prompts: list[list[int]], how: Settings) -> list[list[int]]:
    return torch.stack(list(generate(decoder, prompts, how)), 1).tolist()


def graphs(decoder: Decoder) -> dict[int, int]:
    """How often each length's graph was replayed."""
    assert decoder.static_step is not None
    recorded = decoder.static_step.recorded
    return {S: each.graph.replays for S, each in recorded.items()}  # type: ignore[attr-defined]


def equal_ids() -> dict[str, bool]:
    """Whether graphs, single kernels and the CPU give the same ids."""
    same = {}
    for name, config in {"plain": PLAIN, "modern": MODERN}.items():
        gpu, cpu = made(config, "cuda"), made(config, "cpu")
        # with the rows' lengths apart; of the modern one all go beyond block_size
        prompts = [[1, 2, 3], [i % N_VOCAB for i in range(30)], [7]]
        for weights in ("float32", "bfloat16", "int8") if name == "plain" else ("float32",):
            for how in (GREEDY, DRAWN):
                case = f"{name} {weights} {how.temperature}"
                replayed = Decoder(gpu, N_VOCAB, weights)
                first = ids(replayed, prompts, how)
                begun = ids(Decoder(gpu, N_VOCAB, weights, cuda_graphs=False), prompts, how)
                same[f"{case}: graphs"] = first == begun and sum(graphs(replayed).values()) > 10
                if weights == "float32":
                    same[f"{case}: graphs at hand"] = ids(replayed, prompts, how) == begun
                    same[f"{case}: CPU"] = ids(Decoder(cpu, N_VOCAB), prompts, how) == begun
    return same


def lengths() -> dict[int, int]:
    """The graphs of a text that grows over several lengths of the cache."""
    decoder = Decoder(made(PLAIN, "cuda"), N_VOCAB)
    ids(decoder, [[1] * 200], Settings(max_new_tokens=390, temperature=0))
    return graphs(decoder)


def reads(cuda_graphs: bool) -> list[list[str]]:
    """What waited for the device, and what went up, in each token of the middle of a text."""
    decoder, found = Decoder(made(PLAIN, "cuda"), N_VOCAB, "bfloat16", cuda_graphs), []
    for number, _ in enumerate(generate(decoder, [[1, 2], [3]], DRAWN)):
        happened = [
            f"{each.kind} {each.what}".strip()
            + ("" if each.pinned or each.kind != "up" else " not pinned")
            for each in record.happenings
            if each.waits or each.kind == "up"
        ]
        if 20 <= number < 23:
            found.append(happened)
        if number == 19:  # nothing but the read itself may wait from here on
            torch.cuda.set_sync_debug_mode("error")
        record.happenings.clear()
    torch.cuda.set_sync_debug_mode("default")
    return found


def int8_products() -> dict[str, object]:
    """How often int8 weights were turned into numbers to multiply with, in ten tokens."""
    decoder, count = Decoder(made(PLAIN, "cuda"), N_VOCAB, "int8", cuda_graphs=False), 0

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal count
            count += any(getattr(each, "dtype", None) == torch.int8 for each in args)
            return op(*args, **(kwargs or {}))

    with Casts():
        ids(decoder, [[1, 2]], Settings(max_new_tokens=10))
    return {"casts": count, "format": decoder.format, "bytes": decoder.weight_bytes}


def freed() -> bool:
    """Whether the memory of a decoder that nobody has any more is free at once."""
    model = made(PLAIN, "cuda")
    gc.collect()
    gc.disable()
    before = torch.cuda.memory_allocated()
    ids(Decoder(model, N_VOCAB, "bfloat16"), [[1, 2]], GREEDY)
    gc.enable()
    return torch.cuda.memory_allocated() == before


def diverged() -> bool:
    """Whether weights that are not finite are told."""
    broken = made(PLAIN, "cuda")
    with torch.no_grad():
        broken.transformer.ln_f.weight[0] = float("nan")
    try:
        ids(Decoder(broken, N_VOCAB), [[1]], GREEDY)
    except DivergedError:
        return True
    return False


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "same": equal_ids(),
                "lengths": lengths(),
                "reads": reads(True),
                "reads without graphs": reads(False),
                "int8": int8_products(),
                "diverged": diverged(),
                "freed": freed(),
            }
        )
    )

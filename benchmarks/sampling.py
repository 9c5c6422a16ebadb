"""`nanogpt sample` beside transformers' generate and nanoGPT's: GPT-2 124M with random weights,
tokens per second.

    pip install transformers
    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/sampling.py --against-nanogpt nanoGPT         # --rounds 3

All draw with temperature 0.8 and top-k 200, in one process, in turns, and none stops early.
transformers runs in float32 and in bfloat16, and the faster one counts. Ours has bfloat16 weights,
the default on a CPU that is fast in it; int8 and float32 are told as well. Prints one JSON object.
"""

import argparse
import contextlib
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from turns import in_turns, machine, medians, ratio, report

# prompts, tokens of each, tokens to make; what to reach beside transformers, and beside nanoGPT
CASES = {
    "1 prompt of 8 → 64": (1, 8, 64, 1.9, 3.5),
    "1 prompt of 960 → 32": (1, 960, 32, 2.0, 30.0),
    "8 prompts of 8 → 64": (8, 8, 64, 2.3, None),
}
VOCAB = 50257


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against-nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()

    import torch
    import transformers

    from nanogpt_dist.generation.decoder import Decoder
    from nanogpt_dist.generation.sampling import Settings, generate
    from nanogpt_dist.load_config import load
    from nanogpt_dist.model.gpt import GPT

    model = GPT(load("gpt2").architecture()).init_weights(0).eval()
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(bos_token_id=0, eos_token_id=0)
    ).eval()
    in_bf16 = copy.deepcopy(theirs).to(torch.bfloat16)
    lineage = nanogpt(given.against_nanogpt) if given.against_nanogpt else None
    rows = []
    for case, (count, length, new, reach, reach_nanogpt) in CASES.items():
        prompts = torch.randint(VOCAB, (count, length), generator=torch.Generator().manual_seed(0))
        drawn = Settings(max_new_tokens=new, temperature=0.8, top_k=200)

        def ours(weights: str, prompts=prompts, drawn=drawn) -> Callable[[], float]:
            decoder = Decoder(model, VOCAB, weights)
            return speed(
                lambda: sum(ids.numel() for ids in generate(decoder, prompts.tolist(), drawn))
            )

        def hugging_face(model, prompts=prompts, new=new) -> Callable[[], float]:
            options = {
                "do_sample": True,
                "temperature": 0.8,
                "top_k": 200,
                "eos_token_id": None,
                "pad_token_id": 0,
            }
            options |= {"max_new_tokens": new, "attention_mask": torch.ones_like(prompts)}
            return speed(lambda: model.generate(prompts, **options)[:, prompts.size(1) :].numel())

        cases = {
            "bfloat16": ours("bfloat16"),
            "int8": ours("int8"),
            "float32": ours("float32"),
            "transformers float32": hugging_face(theirs),
            "transformers bfloat16": hugging_face(in_bf16),
        }
        figures = in_turns(cases, given.rounds)
        if lineage is not None and reach_nanogpt is not None:
            draw = speed(
                lambda prompts=prompts, new=new: lineage.generate(
                    prompts, new, temperature=0.8, top_k=200
                )[:, prompts.size(1) :].numel()
            )
            figures |= in_turns({"nanoGPT": draw}, given.rounds, warm_up=False)
        best = max(
            figures["transformers float32"], figures["transformers bfloat16"], key=statistics.median
        )
        told = {"tokens_per_second": medians(figures)}
        beside = "transformers, its faster format"
        rows.append(
            {"what": f"sampling 124M, {case}", "beside": beside, "reach": reach}
            | ratio(figures["bfloat16"], best)
            | told
        )
        if "nanoGPT" in figures:
            rows.append(
                {"what": f"sampling 124M, {case}", "beside": "nanoGPT", "reach": reach_nanogpt}
                | ratio(figures["bfloat16"], figures["nanoGPT"])
                | told
            )
    report(rows, machine=machine("torch", "transformers"))


def speed(make: Callable[[], int]) -> Callable[[], float]:
    """Tokens per second of a function that makes tokens and returns how many."""
    import torch

    def measure() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            return make() / (time.perf_counter() - started)

    return measure


def nanogpt(clone: Path):
    """nanoGPT's own model with random weights."""
    sys.path.insert(0, str(clone))
    from model import GPT, GPTConfig

    with contextlib.redirect_stdout(sys.stderr):  # it prints how many parameters it has
        return GPT(GPTConfig(vocab_size=VOCAB, bias=True)).eval()


if __name__ == "__main__":
    main()

"""Text on the GPU: transformers' greedy ids, int8's perplexity, graphs beside eager steps."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import nanogpt_dist as ng
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.generation.sampling import Settings, generate
from tests.conftest import Run
from tests.gpu.conftest import Measured
from tests.gpu.machine import SIMULATED
from tests.gpu.runs import train

PROMPT = list(b"To be, or not to be")
TOKENS = 8 if SIMULATED else 100


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, of a GPT-2 with random weights that speaks in bytes."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(3)
    sizes = {"n_layer": 2 if SIMULATED else 6, "n_head": 4, "n_embd": 256, "n_positions": 256}
    config = transformers.GPT2Config(vocab_size=257, bos_token_id=256, eos_token_id=256, **sizes)
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():  # or all that it says is one token again and again
        parameter.data.mul_(3)
    model.save_pretrained(folder)
    return folder


def drawn(decoder: Decoder, settings: Settings, rows: int = 1) -> list[list[int]]:
    """The ids of each row."""
    prompts = [PROMPT[: len(PROMPT) - row] for row in range(rows)]
    steps = [ids.tolist() for ids in generate(decoder, prompts, settings, range(rows))]
    return [list(row) for row in zip(*steps, strict=True)]


def test_greedy_ids_are_those_of_transformers(exported: Path, measured: Measured) -> None:
    torch.set_float32_matmul_precision("highest")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(exported).to("cuda").eval()
    prompt = torch.tensor([PROMPT], device="cuda")
    wanted = theirs.generate(
        prompt,
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=256,
    )[0, len(PROMPT) :].tolist()
    model = ng.load(exported, device="cuda", dtype="float32").gpt
    found = drawn(Decoder(model, 257), Settings(temperature=0, max_new_tokens=TOKENS))[0]
    measured.note(ids=found, distinct=len(set(found)))
    assert found == wanted


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 8])
def test_replayed_graphs_draw_what_eager_steps_draw(
    rows: int,
    weights: str,
    exported: Path,
    measured: Measured,
) -> None:
    model = ng.load(exported, device="cuda").gpt
    for settings in (
        Settings(temperature=0, max_new_tokens=TOKENS),
        Settings(temperature=0.8, top_k=50, max_new_tokens=TOKENS, seed=5),
    ):
        eager, graphs = (
            drawn(Decoder(model, 257, weights, cuda_graphs=each), settings, rows)
            for each in (False, True)
        )
        measured.note(**{f"ids at temperature {settings.temperature:g}": graphs})
        assert graphs == eager


def test_int8_has_nearly_the_perplexity_of_float32(
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    """By the tokens' probabilities as the decoder tells them, over a text that the model knows."""
    steps = 8 if SIMULATED else 200
    train(nanogpt, corpus, tmp_path / "run", max_iters=steps, dtype="bfloat16")
    model = ng.load(tmp_path / "run", device="cuda").gpt
    text = list(b"def main(argv: list[str]) -> int:\n    return sum(map(len, argv))\n")

    def perplexity(weights: str) -> float:
        decoder = Decoder(model, 256, weights, cuda_graphs=False)
        logits = decoder.start([text[:8]], len(text) - 8)
        losses = []
        for token in text[8:]:
            losses.append(-logits.float().log_softmax(-1)[0, token])
            logits = decoder.next(torch.tensor([token], device="cuda"))
        return torch.stack(losses).mean().exp().item()

    plain, int8 = perplexity("float32"), perplexity("int8")
    measured.note(float32=plain, int8=int8)
    measured.at_most(0.01, difference=abs(int8 / plain - 1))


def test_bench_sample_says_how_fast(nanogpt: Run, measured: Measured) -> None:
    """The command that once died on every GPU, bare but for its size on a simulated device."""
    small = ["--n-layer", 2, "--n-embd", 64, "--n-head", 2, "--rounds", 1] if SIMULATED else []
    said = json.loads(nanogpt("bench", "sample", *small, "--device", "cuda", "--json").stdout)
    assert said["device"] == "cuda"
    measured.note(**said)

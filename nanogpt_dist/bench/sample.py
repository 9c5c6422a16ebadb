"""The speed of sampling from random weights: a prompt read at once, then tokens one by one."""

import itertools
import time
from dataclasses import dataclass, field

import torch

from nanogpt_dist.bench.clock import spread
from nanogpt_dist.config import ModelConfig
from nanogpt_dist.devices import memory_bytes
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.generation.decoder import Decoder, pick_weights
from nanogpt_dist.generation.sampling import Settings, generate
from nanogpt_dist.load_config import with_vocabulary
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.peaks import peak_tflops


@dataclass(frozen=True)
class SampleWorkload:
    """Rows that are drawn together, their prompt and length in tokens, and how often it is done."""

    num_samples: int
    prompt_tokens: int
    max_new_tokens: int
    rounds: int


@dataclass(frozen=True)
class SampleSpeed:
    """tokens_per_second: new ones, of all rows, with the time to read the prompts.

    ms_per_update: of one token of each row. weights_gb_per_second: how fast the weights are read,
    each of them once for a token of each row.
    """

    tokens_per_second: float
    prefill_ms: float
    ms_per_update: float
    ms_least: float
    ms_greatest: float
    weights_gb_per_second: float
    mfu: float
    peak_tflops: float
    memory_bytes: int
    parameters: int
    num_samples: int
    prompt_tokens: int
    max_new_tokens: int
    weights: str
    threads: int
    device: str


@dataclass
class _Timings:
    """Seconds of each round: to read the prompts, of each token after the first, and in all."""

    prefills: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)


def bench_sample(
    architecture: ModelConfig,
    device: torch.device,
    dtype: str,
    workload: SampleWorkload,
    cuda_graphs: bool = True,
) -> SampleSpeed:
    """Draw the workload once for nothing, then workload.rounds times; medians.

    dtype: auto | float32 | bfloat16 | int8, the format of the weights. cuda_graphs: on CUDA, replay
    a recorded step. Raises ConfigError.
    """
    new, rows = workload.max_new_tokens, workload.num_samples
    if workload.prompt_tokens + new > architecture.block_size:
        raise ConfigError(
            f"{workload.prompt_tokens} + {new} tokens are more than the block_size of "
            f"{architecture.block_size}: give a shorter --prompt-tokens or --max-new-tokens"
        )
    architecture = with_vocabulary(architecture)
    assert architecture.vocab_size is not None
    weights = pick_weights(dtype, device, greedy=False)
    with torch.device("meta"):
        model = GPT(architecture)
    model = model.to_empty(device=device).tie().init_weights(0).eval()
    decoder = Decoder(model, architecture.vocab_size, weights, cuda_graphs)
    timings = _time(decoder, architecture.vocab_size, workload)
    # the first round is for nothing
    median, least, greatest = spread(timings.tokens[new - 1 :] or timings.prefills[1:])
    speed = rows * new / (spread(timings.rounds[1:])[0] / 1e3)
    peak = peak_tflops(device, decoder.dtype)
    read = model.num_params(non_embedding=True) * decoder.weight_bytes
    return SampleSpeed(
        tokens_per_second=speed,
        prefill_ms=spread(timings.prefills[1:])[0],
        ms_per_update=median,
        ms_least=least,
        ms_greatest=greatest,
        weights_gb_per_second=read / median / 1e6,
        mfu=speed * 2 * model.num_params(non_embedding=True) / (peak * 1e12),
        peak_tflops=peak,
        memory_bytes=memory_bytes(device),
        parameters=model.num_params(),
        num_samples=rows,
        prompt_tokens=workload.prompt_tokens,
        max_new_tokens=new,
        weights=weights,
        threads=torch.get_num_threads(),
        device=device.type,
    )


def _time(decoder: Decoder, vocab_size: int, workload: SampleWorkload) -> _Timings:
    """The _Timings of workload.rounds + 1 rounds, on random prompts."""
    rows, new = workload.num_samples, workload.max_new_tokens
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(
        vocab_size, (rows, workload.prompt_tokens), generator=generator
    ).tolist()
    settings, timings = Settings(max_new_tokens=new, seed=0), _Timings()
    for _ in range(workload.rounds + 1):
        clock = [time.perf_counter()]
        # ids are there when they are on the host
        for _ in generate(decoder, prompts, settings, range(rows)):
            clock.append(time.perf_counter())
        timings.prefills.append(clock[1] - clock[0])
        timings.tokens += [after - before for before, after in itertools.pairwise(clock[1:])]
        timings.rounds.append(clock[-1] - clock[0])
    return timings

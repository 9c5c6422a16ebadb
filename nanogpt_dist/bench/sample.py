"""The speed of sampling from random weights: a prompt read at once, then tokens one by one."""

import itertools
import time
from dataclasses import dataclass

import torch

from nanogpt_dist.bench.clock import spread
from nanogpt_dist.config import ModelConfig
from nanogpt_dist.devices import memory_bytes, peak_tflops, synchronize
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.generation.decoder import Decoder, pick_weights
from nanogpt_dist.generation.sampling import Settings, choose, generator_of
from nanogpt_dist.load_config import with_vocabulary
from nanogpt_dist.model.gpt import GPT


@dataclass(frozen=True)
class SampleSpeed:
    """tokens_per_second: new ones, of all rows, the reading of the prompts counted in.
    ms_per_update: a token each row.

    weights_gb_per_second: how fast the weights are read, each of them once for a token of each row.
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


def bench_sample(
    architecture: ModelConfig,
    device: torch.device,
    dtype: str,
    num_samples: int,
    prompt_tokens: int,
    max_new_tokens: int,
    rounds: int,
) -> SampleSpeed:
    """Draw `num_samples` rows together, `rounds` times after once for nothing; medians. Raises
    ConfigError.

    dtype: auto | float32 | bfloat16 | int8, the format of the weights.
    """
    if prompt_tokens + max_new_tokens > architecture.block_size:
        raise ConfigError(
            f"{prompt_tokens} + {max_new_tokens} tokens are more than the block_size of "
            f"{architecture.block_size}: give a shorter --prompt-tokens or --max-new-tokens"
        )
    architecture = with_vocabulary(architecture)
    assert architecture.vocab_size is not None
    weights = pick_weights(dtype, device, greedy=False)
    with device:
        model = GPT(architecture).init_weights(0).eval()
    decoder = Decoder(model, architecture.vocab_size, weights)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(
        architecture.vocab_size, (num_samples, prompt_tokens), generator=generator
    ).tolist()
    settings, draw = (
        Settings(max_new_tokens=max_new_tokens),
        [generator_of(0, i) for i in range(num_samples)],
    )
    prefills: list[float] = []
    passes: list[float] = []
    whole: list[float] = []
    for _ in range(rounds + 1):
        clock = [time.perf_counter()]
        logits = decoder.start(prompts, max_new_tokens)
        for left in range(max_new_tokens - 1, -1, -1):
            chosen = choose(logits, settings, draw)[:, 0]
            synchronize(device)
            clock.append(time.perf_counter())
            if left:
                logits = decoder.next(chosen)
        prefills.append(clock[1] - clock[0])
        passes += [after - before for before, after in itertools.pairwise(clock[1:])]
        whole.append(clock[-1] - clock[0])
    median, least, greatest = spread(passes[max_new_tokens - 1 :] or prefills[1:])
    speed = num_samples * max_new_tokens / (spread(whole[1:])[0] / 1e3)
    peak = peak_tflops(device, decoder.dtype)
    parameters = model.num_params()
    read = model.num_params(non_embedding=True) * {"float32": 4, "bfloat16": 2, "int8": 1}[weights]
    return SampleSpeed(
        tokens_per_second=speed,
        prefill_ms=spread(prefills[1:])[0],
        ms_per_update=median,
        ms_least=least,
        ms_greatest=greatest,
        weights_gb_per_second=read / median / 1e6,
        mfu=speed * 2 * model.num_params(non_embedding=True) / (peak * 1e12),
        peak_tflops=peak,
        memory_bytes=memory_bytes(device),
        parameters=parameters,
        num_samples=num_samples,
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        weights=weights,
        threads=torch.get_num_threads(),
        device=device.type,
    )

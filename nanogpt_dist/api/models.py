"""A trained model as an object: text, logits, loss."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from nanogpt_dist import load_config
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import MissingInputError, UsageError
from nanogpt_dist.generation.settings import Settings
from nanogpt_dist.storage.run_checkpoints import read_checkpoint
from nanogpt_dist.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from nanogpt_dist.evaluation.report import LoadedModel
    from nanogpt_dist.generation.decoder import Decoder
    from nanogpt_dist.generation.sampling import Sample
    from nanogpt_dist.model.gpt import GPT

Note = Callable[[str], None]
Dtype = Literal["auto", "float32", "bfloat16", "int8"]
Weights = Literal["model", "ema"]


def load(
    name: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    best: bool = False,
    weights: Weights = "model",
    note: Note = warnings.warn,
) -> "Model":
    """Load a trained model.

    name: a run folder, a checkpoint in it, a folder that `nanogpt export hf` or transformers wrote,
    gpt2 … gpt2-xl, or OWNER/NAME on the hub; None: the newest run under out/.
    device: auto, cpu, cuda or mps. dtype: of the weights that draw text, as `nanogpt sample
    --dtype`. best: of a run, the checkpoint of the lowest val loss instead of the newest.
    weights: ema takes those that a run with ema_decay has averaged.
    note: is called with a line for a damaged checkpoint that is passed over.

    Raises: MissingInputError, BadDataError, HubUnavailableError, ConfigError, UsageError.

    >>> model = ng.load("out/quickstart", device="cpu")
    """
    if name is None or (Path(name).is_dir() and not (Path(name) / "config.json").is_file()):
        return read_checkpoint(
            None if name is None else str(name),
            lambda found: Model.of_checkpoint(found, device, dtype, weights),
            best,
            note,
        )
    if best:
        raise UsageError("best chooses among a run's checkpoints: leave it out")
    if weights == "ema":
        raise UsageError("weights='ema' is for a run's checkpoint: leave it out")
    return Model.of_pretrained(str(name), device, dtype)


class Choices(TypedDict, total=False):
    """How text is drawn; what is left out is as in `nanogpt sample`.

    max_new_tokens: the longest text. temperature: 0 takes the likeliest token. top_k: choose among
    so many; None or 0: among all. top_p: choose among the likeliest of this total probability.
    stop: texts before which a sample ends. seed: equal seeds draw equal texts.
    """

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    stop: Sequence[str]
    seed: int


@dataclass(frozen=True)
class TextLoss:
    """loss in nats/token over `tokens` predicted tokens, and in bits per UTF-8 byte of `bytes`."""

    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int


class Model:
    """A trained model and its tokenizer: draws text, gives logits, and tells the loss of a text.

    name: what it was loaded from. gpt: the torch module, in evaluation mode. config: its settings.
    checkpoint: its folder; None for weights of Hugging Face's.
    """

    def __init__(self, loaded: "LoadedModel", dtype: Dtype = "auto") -> None:
        self.name, self.checkpoint = loaded.name, loaded.checkpoint
        self.gpt: GPT = loaded.model
        self.config: TrainConfig = loaded.config
        self.dtype = dtype
        self._loaded = loaded
        self._decoders: dict[str, Decoder] = {}

    @classmethod
    def of_checkpoint(
        cls,
        folder: Path,
        device: str = "auto",
        dtype: Dtype = "auto",
        weights: Weights = "model",
    ) -> "Model":
        """The model of a verified checkpoint folder.

        Raises: MissingInputError where it has no averaged weights; BadDataError, StorageError.
        """
        from nanogpt_dist.devices import pick_device
        from nanogpt_dist.evaluation import report

        return cls(report.load_checkpoint(folder, pick_device(device), weights), dtype)

    @classmethod
    def of_pretrained(cls, name: str, device: str = "auto", dtype: Dtype = "auto") -> "Model":
        """The model that `--init-from name` means. Raises as init_from.find_pretrained()."""
        config = load_config.load("gpt2", {"init_from": name})
        from nanogpt_dist.devices import pick_device
        from nanogpt_dist.evaluation import report

        return cls(report.load_pretrained(config, pick_device(device)), dtype)

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.gpt.num_params():,} parameters>"

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back. Raises MissingInputError where the model came without one."""
        if self._loaded.tokenizer is None:
            raise MissingInputError(
                f"{self.name} has no tokenizer files; copy the tokenizer.json of the model into it"
            )
        return self._loaded.tokenizer

    @overload
    def generate(self, prompt: str | None = None, **choices: Unpack[Choices]) -> str: ...

    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], **choices: Unpack[Choices]
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...] | None = None,
        **choices: Unpack[Choices],
    ) -> str | list[str]:
        """Draw the text that follows `prompt`; of several prompts, all at once, a list of texts.

        prompt: None begins with a line break, as `nanogpt sample` does. choices: see Choices. A
        text ends before the end-of-text token or the first stop text.

        Raises: UsageError, BadDataError, MissingInputError.

        >>> model.generate("Once upon a time", max_new_tokens=50, temperature=0.8, seed=1)
        """
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        texts = [each.text for each in self.samples(prompts, **choices)]
        return texts[0] if prompt is None or isinstance(prompt, str) else texts

    def stream(self, prompt: str | None = None, **choices: Unpack[Choices]) -> Iterator[str]:
        """Draw what generate() draws, piece by piece as it comes.

        >>> for piece in model.stream("Once upon a time"): print(piece, end="", flush=True)
        """
        for _, piece in self.stream_samples([prompt], **choices):
            yield piece

    def samples(
        self,
        prompts: Sequence[str | None],
        num_samples: int = 1,
        **choices: Unpack[Choices],
    ) -> "list[Sample]":
        """`num_samples` samples after each prompt, with their ids, all in one batch."""
        from nanogpt_dist.generation import sampling

        settings = _settings(choices)
        if not (prompts and num_samples >= 1):
            return []
        texts = [self.prompt_text(prompt) for prompt in prompts]
        decoder = self._decoder(settings.temperature)
        return sampling.sample(decoder, self.tokenizer, texts, num_samples, settings)

    def stream_samples(
        self,
        prompts: Sequence[str | None],
        num_samples: int = 1,
        **choices: Unpack[Choices],
    ) -> Iterator[tuple[int, str]]:
        """What samples() draws, as (number of the sample, piece), one sample after the other."""
        from nanogpt_dist.generation import sampling

        settings = _settings(choices)
        texts = [self.prompt_text(prompt) for prompt in prompts]
        decoder = self._decoder(settings.temperature)
        yield from sampling.stream(decoder, self.tokenizer, texts, num_samples, settings)

    def logits(self, ids: "Sequence[int] | Sequence[Sequence[int]] | Tensor") -> "Tensor":
        """Logits of the token after each position, in float32: (T,) → (T, V), (B, T) → (B, T, V).

        T is at most config.block_size; V = config.vocab_size, the rows of the token embedding.

        Raises: UsageError, and BadDataError for an id without a row.

        >>> model.logits(model.tokenizer.encode("def ").tolist()).argmax(-1)
        """
        import torch

        idx = torch.as_tensor(ids, dtype=torch.int64, device=self.gpt.lm_head.weight.device)
        rows = idx[None] if idx.dim() == 1 else idx  # (B, T)
        if rows.dim() != 2 or not 1 <= rows.size(1) <= self.config.block_size or not len(rows):
            raise UsageError(
                f"logits of ids of shape {tuple(idx.shape)}: give (T,) or (B, T) with 1 to "
                f"{self.config.block_size} tokens"
            )
        if int(rows.min()) < 0:
            raise UsageError(f"{int(rows.min())} is no token id; ids begin with 0")
        self.gpt.refuse_unknown(int(rows.max()))
        with torch.no_grad():
            logits = self.gpt.logits(rows)  # (B, T, V)
        return logits[0] if idx.dim() == 1 else logits

    def loss(self, text: str) -> TextLoss:
        """The loss of a text as one document; each token is predicted once.

        Windows of block_size tokens, in float32, as `nanogpt eval --text` reads a file.

        Raises: BadDataError for a text of no token, DivergedError, MissingInputError.

        >>> model.loss("To be, or not to be").bits_per_byte
        """
        from nanogpt_dist.distributed.world import World
        from nanogpt_dist.evaluation.tasks import jsonl_tasks

        device = self.gpt.lm_head.weight.device
        world = World(rank=0, local_rank=0, size=1, device=device, backend=None)
        scorer = self._loaded.scorer(world, batch_size=16, dtype="float32")
        return TextLoss(**jsonl_tasks.score_text(text, "the text", scorer))

    def prepare_weights(self, temperature: float) -> str:
        """Make the weights ready that draw at that temperature; returns their number format."""
        return self._decoder(temperature).format

    def _decoder(self, temperature: float) -> "Decoder":
        from nanogpt_dist.generation.decoder import Decoder, pick_weights

        device = self.gpt.lm_head.weight.device
        weights = pick_weights(self.dtype, device, greedy=temperature == 0)
        if weights not in self._decoders:
            self._decoders[weights] = Decoder(self.gpt, self.tokenizer.n_vocab, weights)
        return self._decoders[weights]

    def prompt_text(self, prompt: str | None) -> str:
        """The prompt itself; for None what a text begins with, a line break where there is one."""
        from nanogpt_dist.generation.sampling import first_text

        return first_text(self.tokenizer) if prompt is None else prompt


def _settings(choices: Mapping[str, Any]) -> Settings:
    """`choices` with the defaults of `nanogpt sample`. Raises UsageError for one that cannot be."""
    if unknown := choices.keys() - Settings.__dataclass_fields__.keys():
        known = ", ".join(Settings.__dataclass_fields__)
        raise UsageError(f"nothing is called {', '.join(sorted(unknown))} here; there are {known}")
    stop = choices.get("stop", ())
    given = {
        **choices,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "top_k": choices.get("top_k", Settings.top_k) or None,  # 0: among all, as in the command
    }
    settings = Settings(**given)
    allowed = {
        "max_new_tokens": settings.max_new_tokens >= 1,
        "temperature": 0 <= settings.temperature <= 1e6,
        "top_k": settings.top_k is None or settings.top_k >= 1,
        "top_p": settings.top_p is None or 0 <= settings.top_p <= 1,
        "stop": all(settings.stop),
        "seed": 0 <= settings.seed < 2**63,
    }
    if wrong := next((name for name, is_allowed in allowed.items() if not is_allowed), None):
        raise UsageError(f"{wrong} = {getattr(settings, wrong)!r} is out of range")
    return settings

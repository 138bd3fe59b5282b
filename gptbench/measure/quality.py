"""Quality: how well an engine predicts a text, and how far its predictions are from the reference's.

The engine is the one that was timed, with the very kernels: it prefills as many tokens as the workload's prompt has,
and decodes as many as the workload generates, but is fed the text's tokens in the place of its own. What it predicts at
each step is compared with the text, and with what the reference predicts from the same tokens.

Perplexity: Jelinek et al., 1977. Kullback-Leibler divergence from the reference, mean over tokens, and agreement on the
most likely token, as measures of what a quantisation does: Dutta et al., 2024, arXiv:2407.09141.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptbench.config import Config, QualityConfig, TaskConfig
from gptbench.engine import Engine
from gptbench.errors import ConfigError
from gptbench.prompt import HELD_OUT, random_tokens, read_text
from gptbench.tokenizer import Tokenizer


@dataclass
class Predictions:
    """What came of predicting a text, token by token in its order."""

    text: str | None
    """File of the text; None where the model has no tokenizer, and predicted random tokens."""
    text_sha256: str | None
    scored_bytes: int | None
    """Length in UTF-8 of the part of the text that was predicted."""
    context: list[int]
    """Tokens before the first and before the last predicted one of a window; the next window starts anew."""
    nll: list[float]
    """Negative log-likelihood of each token of the text, in nats."""
    reference_nll: list[float] = field(default_factory=list)
    """The same for the reference; empty where there was none."""
    kl: list[float] = field(default_factory=list)
    """Kullback-Leibler divergence of the engine's distribution from the reference's, in nats, at each token."""
    same_top: list[bool] = field(default_factory=list)
    """Whether both prefer the same token."""


class Speed:
    """Nothing beside speed.

    Args:
        task: the task's section.
        config: the run's, with its prompt as tokens.
        tokenizer: the model's, or None.
    """

    stage: str | None = None
    """What the user is told while it is evaluated; None where there is nothing to do."""
    needs_reference = False
    """Whether `evaluate` makes the reference."""

    def __init__(self, task: TaskConfig, config: Config, tokenizer: Tokenizer | None) -> None:
        self.task, self.config = task, config

    def evaluate(self, engine: Engine, make_reference: Callable[[], Engine]) -> Predictions | None:
        """What there is to say of the quality of an engine that was prepared."""
        return None


class Quality(Speed):
    """Predicts a held-out text.

    Attributes:
        windows: int64 [W, T + n]: T tokens that are prefilled and n that are predicted, which follow upon those of the
            window before; each window begins with the tokenizer's begin-of-text token if it has one.

    Raises:
        ConfigError: no text, or too little of it.
    """

    task: QualityConfig
    stage = "predicting the text"

    def __init__(self, task: QualityConfig, config: Config, tokenizer: Tokenizer | None) -> None:
        super().__init__(task, config, tokenizer)
        self.needs_reference = task.reference
        self.prefilled, self.predicted = len(config.workload.prompt), config.workload.new_tokens
        count = task.tokens // self.predicted
        if not count:
            raise ConfigError("task.tokens", task.tokens, f"at least workload.new_tokens={self.predicted}")
        self.text = self.text_sha256 = self.scored_bytes = None
        if tokenizer is None:
            if task.text_file is not None:
                raise ConfigError(
                    "task.text_file", task.text_file, "null for a model without a tokenizer (model.tokenizer names one)"
                )
            begin: list[int] = []
            length = self.prefilled + count * self.predicted
            tokens = random_tokens(config.model.vocab_size, length, config.workload.seed)
        else:
            file = task.text_file or str(HELD_OUT)
            text = read_text(file, "task.text_file")
            tokens = tokenizer.encode(text)
            begin = tokens[:1] if tokens[0] == tokenizer.bos else []
            tokens = tokens[len(begin) :]
        context = self.prefilled - len(begin)
        count = min(count, (len(tokens) - context) // self.predicted)
        if count < 1:
            raise ConfigError(
                "task.text_file", file, f"a text of at least {context + self.predicted} tokens (it has {len(tokens)})"
            )
        if tokenizer is not None:
            scored = tokens[context : context + count * self.predicted]
            self.text, self.text_sha256 = file, hashlib.sha256(text.encode()).hexdigest()
            self.scored_bytes = len(tokenizer.continuation(tokens[:context], scored).encode())
        length = context + self.predicted
        starts = range(0, count * self.predicted, self.predicted)
        self.windows = torch.tensor([begin + tokens[start : start + length] for start in starts])

    def evaluate(self, engine: Engine, make_reference: Callable[[], Engine]) -> Predictions:
        """Predicts the text.

        Args:
            engine: prepared; its state is lost.
            make_reference: called once the engine is done with, if the task compares: the reference, prepared.
        """
        first = self.prefilled
        found = Predictions(
            text=self.text,
            text_sha256=self.text_sha256,
            scored_bytes=self.scored_bytes,
            context=[first, first + self.predicted - 1],
            nll=[],
        )
        nll, kept = [], []
        for logits, tokens in self.predict(engine):
            nll.append(likelihood(logits, tokens))
            if self.needs_reference:
                kept.append(logits.to("cpu", copy=True))
        found.nll = self.in_order(nll)
        if self.needs_reference:
            reference = make_reference()
            compared: list[tuple[Tensor, Tensor, Tensor]] = []
            for (expected, tokens), logits in zip(self.predict(reference), kept, strict=True):
                p, q = expected.double().log_softmax(-1), logits.to(expected.device).double().log_softmax(-1)
                kl = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)  # p of no chance adds 0, not NaN
                compared.append((likelihood(expected, tokens), kl.cpu(), (p.argmax(-1) == q.argmax(-1)).cpu()))
            found.reference_nll = self.in_order([nll for nll, _, _ in compared])
            found.kl = self.in_order([kl for _, kl, _ in compared])
            found.same_top = [bool(same) for same in self.in_order([same for _, _, same in compared])]
        return found

    def predict(self, engine: Engine) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [R, V] on the device before each predicted token of a batch of windows, and these tokens [R]; then
        those of the next batch. R is the batch size, but for the last batch, which the engine gets filled up."""
        for windows in self.windows.split(engine.batch):
            fillers = windows[-1:].expand(engine.batch - len(windows), -1)
            fed = torch.cat((windows, fillers)).to(engine.device.torch)
            engine.prefill(fed[:, : self.prefilled])
            for place in range(self.prefilled, self.windows.shape[1]):
                if place > self.prefilled:
                    engine.state.token.copy_(fed[:, place - 1 : place])
                    engine.decode()
                yield engine.state.logits[: len(windows)], fed[: len(windows), place]

    def in_order(self, values: list[Tensor]) -> list[float]:
        """What there is for each that `predict` yields, [R], in the text's order."""
        batches = [values[start : start + self.predicted] for start in range(0, len(values), self.predicted)]
        return torch.cat([torch.stack(batch, dim=1).flatten() for batch in batches]).tolist()


def likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of tokens [R] under logits [R, V], in nats: float64 [R] on the host."""
    return -logits.double().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1).cpu()

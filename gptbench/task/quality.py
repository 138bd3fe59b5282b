"""Measures quality: how well an engine predicts a text, and how much its predictions differ from the reference's.

The engine is the one that was timed, with the same kernels. It prefills as many tokens as the workload's prompt has and
decodes as many as the workload generates, but with teacher forcing: it is fed the tokens of the text. Its prediction at
each step is compared with the text and with that of the reference for the same tokens.

Perplexity: Jelinek et al., 1977. Mean Kullback-Leibler divergence from the reference and agreement on the most likely
token as measures of the effect of quantisation: Dutta et al., 2024, arXiv:2407.09141.
"""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from gptbench.base.errors import ConfigError
from gptbench.config import Config, QualityConfig
from gptbench.engine import Engine
from gptbench.schema.quality import Predictions
from gptbench.task.speed import Speed
from gptbench.text.prompt import HELD_OUT, first_tokens, random_tokens, read_text
from gptbench.text.tokenizer import Tokenizer

MAX_LOGIT_BYTES_IN_MEMORY = 2**30
"""Maximum bytes of logits kept in memory for comparison with the reference: those of 2048 tokens of Llama 3."""


class Quality(Speed):
    """The task that also predicts a held-out text.

    Attributes:
        windows: int64 [W, T + n], T tokens that are prefilled and n that are predicted. The predicted tokens of a
            window follow those of the window before. Each window begins with the begin-of-text token if there is one.

    Raises:
        ConfigError: the text is missing or too short, or the disk has too little space for the logits to compare.
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
            tokens = first_tokens(tokenizer, text, self.prefilled + count * self.predicted + 1)
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
        if task.reference and self.logit_bytes > MAX_LOGIT_BYTES_IN_MEMORY:
            folder = Path(config.outputs)
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free < self.logit_bytes:
                raise self.disk_error(f"only {free / 1e9:.1f} GB are free")

    def evaluate(self, engine: Engine, make_reference: Callable[[], Engine]) -> Predictions:
        """Predict the text with the engine, and with the reference if the task compares them.

        Args:
            engine: prepared engine, whose state is overwritten.
            make_reference: returns the prepared reference; called once the engine is no longer needed.
        """
        first = self.prefilled
        predictions = Predictions(
            text=self.text,
            text_sha256=self.text_sha256,
            scored_bytes=self.scored_bytes,
            context=[first, first + self.predicted - 1],
            nll=[],
        )
        nll = []
        kept = self.allocate_logits() if self.needs_reference else None
        row = 0
        for logits, tokens in self.predict(engine):
            nll.append(negative_log_likelihood(logits, tokens))
            if kept is not None:
                kept[row : row + len(logits)] = logits.cpu()
                row += len(logits)
        predictions.nll = self.in_order(nll)
        if kept is not None:
            reference = make_reference()
            compared: list[tuple[Tensor, Tensor, Tensor]] = []
            row = 0
            for expected, tokens in self.predict(reference):
                logits = kept[row : row + len(expected)]
                row += len(expected)
                p, q = expected.double().log_softmax(-1), logits.to(expected.device).double().log_softmax(-1)
                kl = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)  # probability 0 adds 0, not NaN
                reference_nll = negative_log_likelihood(expected, tokens)
                compared.append((reference_nll, kl.cpu(), (p.argmax(-1) == q.argmax(-1)).cpu()))
            predictions.reference_nll = self.in_order([nll for nll, _, _ in compared])
            predictions.kl = self.in_order([kl for _, kl, _ in compared])
            predictions.same_top = [bool(same) for same in self.in_order([same for _, _, same in compared])]
        return predictions

    @property
    def logit_bytes(self) -> int:
        """Bytes of the logits of every predicted token, as float32."""
        return 4 * self.windows.shape[0] * self.predicted * self.config.model.vocab_size

    def allocate_logits(self) -> Tensor:
        """Allocate float32 [W·n, V] on the host for the engine's logits, as engine and reference seldom fit on the
        device together. A tensor larger than `MAX_LOGIT_BYTES_IN_MEMORY` is mapped to an unlinked file in the outputs
        folder, which disappears with the process.

        Raises:
            ConfigError: the disk has too little space.
        """
        shape = self.windows.shape[0] * self.predicted, self.config.model.vocab_size
        if self.logit_bytes <= MAX_LOGIT_BYTES_IN_MEMORY:
            return torch.empty(shape)
        with tempfile.NamedTemporaryFile(dir=self.config.outputs) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, self.logit_bytes)  # a full disk would otherwise kill the process
            except OSError as error:
                raise self.disk_error(error.strerror or str(error)) from error
            return torch.from_file(file.name, shared=True, size=math.prod(shape)).view(shape)

    def disk_error(self, why: str) -> ConfigError:
        """Return the error for a disk with too little space."""
        return ConfigError(
            "task.tokens",
            self.task.tokens,
            f"fewer tokens, task.reference=false, or {self.logit_bytes / 1e9:.1f} GB of disk in {self.config.outputs} "
            f"for the logits that are compared ({why})",
        )

    def predict(self, engine: Engine) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the logits [R, V] on the device for each predicted position of a batch of windows, with the
        tokens [R] of the text there, batch by batch. R is the batch size, except for the last batch, which may be
        smaller and is padded for the engine."""
        for windows in self.windows.split(engine.batch):
            fillers = windows[-1:].expand(engine.batch - len(windows), -1)
            fed = torch.cat((windows, fillers)).to(engine.device.torch)
            engine.prefill(fed[:, : self.prefilled])
            for position in range(self.prefilled, self.windows.shape[1]):
                if position > self.prefilled:
                    engine.state.token.copy_(fed[:, position - 1 : position])
                    engine.decode()
                yield engine.state.logits[: len(windows)], fed[: len(windows), position]

    def in_order(self, values: list[Tensor]) -> list[float]:
        """Return values [R] of each item that `predict` yields in the order of the text."""
        batches = [values[start : start + self.predicted] for start in range(0, len(values), self.predicted)]
        return torch.cat([torch.stack(batch, dim=1).flatten() for batch in batches]).tolist()


def negative_log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the negative log-likelihood of tokens [R] under logits [R, V], in nats: float64 [R] on the host."""
    return -logits.double().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1).cpu()

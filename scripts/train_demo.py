#!/usr/bin/env python
"""Make the demo model of gptbench/demo: Jane Austen's six novels, a tokenizer and a Llama of four million parameters.

    python scripts/train_demo.py text --out DIR                          # needs apt (Debian) and a network
    python scripts/train_demo.py train --text DIR --out gptbench/demo    # needs neither, and is best run on a GPU

`text` takes the novels out of the Debian package r-cran-janeaustenr (`apt-get update` first), cleans them, and splits
them by chapter: of each novel the last chapters are held out, those before them are for validation, the rest for
training. `train` learns the tokenizer and the model from the training part alone, keeps the weights with the lowest
validation loss, writes everything in Hugging Face's format, scores what it wrote on the part held out, and writes the
model card from what happened.

Training is not what gptbench is about, so the model and its forward pass here are those of transformers.

Shapes: B batch, C context, N tokens of a text, V vocabulary. Losses are in nats.
"""

import argparse
import dataclasses
import datetime
import hashlib
import itertools
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE = "r-cran-janeaustenr"
DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
TEXTS = ("train", "validation", "held_out")
SHARE = 0.02
"""Minimum share of each novel's characters that is held out, and that is used for validation."""

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
MAX_BYTES = 8_000_000
"""Maximum size of model.safetensors in bytes: the file is part of the repository and of the wheel."""
EVALUATION_BATCH = 16
PROMPT = "The next morning was wet, and Mrs."
NEW_TOKENS = 120


class UserError(ValueError):
    """Mistake that the user can correct: shown without a traceback, with exit code 2."""


# Text: from the Debian package to three files.


def r_objects(data: bytes) -> Iterator[bytes]:
    """Yield the serialised objects of an R lazy-load database (.rdb): each is its length in 4 bytes, then a zlib
    stream.

    The index beside it (.rdx) is not needed, because the objects follow each other without gaps.
    """
    while data:
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(data[4:])
        except zlib.error as error:
            raise UserError(f"{DATA}: not a database of zlib streams ({error})") from error
        if len(raw) != int.from_bytes(data[:4], "big"):
            raise UserError(
                f"{DATA}: an object has {len(raw)} bytes, its header says {int.from_bytes(data[:4], 'big')}"
            )
        yield raw
        data = stream.unused_data


def r_strings(raw: bytes) -> list[str]:
    """Return the strings of a serialised R character vector without attributes; no other object is read.

    Format: R Internals, section 1.8, XDR. "X\\n"; version of the format, of the writer and of the oldest reader; from
    version 3 on the name of the native encoding; then flags with the type in the low byte (16, a character vector),
    the number of strings, and for each flags (type 9), its length in bytes, and the bytes.
    """
    position = 2

    def integer() -> int:
        nonlocal position
        position += 4
        return int.from_bytes(raw[position - 4 : position], "big", signed=True)

    version, _, _ = integer(), integer(), integer()
    if raw[:2] != b"X\n" or version not in (2, 3):
        raise UserError(f"{DATA}: not an R object in XDR of version 2 or 3")
    if version == 3:
        length = integer()
        position += length
    if integer() != 16:
        raise UserError(f"{DATA}: an object that is not a plain character vector")
    strings = []
    for _ in range(integer()):
        flags, length = integer(), integer()
        if flags & 0xFF != 9 or length < 0:
            raise UserError(f"{DATA}: a string of type {flags & 0xFF} and length {length}")
        strings.append(raw[position : position + length].decode("utf-8"))
        position += length
    return strings


def clean(lines: list[str]) -> list[str]:
    """Return the paragraphs of a novel, each on one line, without emphasis, ornaments, and what is not by the author.

    Verse is joined like prose: it is sixty lines in all, and what marks it (indentation) also marks letters.
    """
    paragraphs = []
    for block in re.split(r"\n{2,}", "\n".join(line.strip() for line in lines).strip("\n")):
        if block == "A NOTE ON THE TEXT":  # by a modern publisher, up to the end of the file
            break
        paragraph = re.sub(r"(?<=--)\n|\n(?=--)", "", block)  # a dash has no spaces around it: "came--a gentle sorrow"
        paragraph = re.sub(r"\s+", " ", paragraph)  # joins lines; some novels have two spaces between sentences
        edition = re.fullmatch(r"\[.*\bedition.*\]", paragraph)  # "[End volume one of this edition. Printed by …]"
        if edition or paragraph.startswith("*") or paragraph.upper() in ("FINIS", "THE END"):
            continue  # "* * *" between scenes, or a footnote
        paragraphs.append(re.sub(r"[_*]", "", paragraph))  # _emphasis_, and the sign of that footnote
    return paragraphs


def chapters(paragraphs: list[str]) -> list[str]:
    """Return the text of each chapter with its heading; text before the first heading belongs to the first chapter."""
    starts = [i for i, paragraph in enumerate(paragraphs) if re.fullmatch(r"(?i)chapter [ivxl\d]+", paragraph)]
    if len(starts) < 3:
        raise UserError(f"{len(starts)} chapters in {paragraphs[:1]}: at least 3 are needed for three parts")
    bounds = [0, *starts[1:], len(paragraphs)]
    return ["\n\n".join(paragraphs[a:b]) + "\n" for a, b in itertools.pairwise(bounds)]


def split(parts: list[str]) -> dict[str, list[str]]:
    """Return a novel's chapters split into training, validation and held-out ones, the last chapters being held out."""
    rest, least = list(parts), SHARE * sum(map(len, parts))
    taken: dict[str, list[str]] = {}
    for name in ("held_out", "validation"):
        last: list[str] = []
        while rest and sum(map(len, last)) < least:
            last.insert(0, rest.pop())
        taken[name] = last
    return {"train": rest, **taken}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Return a command's output; raise UserError with its messages if it fails."""
    try:
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not installed: `text` needs Debian's apt-get and dpkg-deb") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{shlex.join(map(str, command))} failed:\n{error.stderr.strip()}") from error


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_text(deb: Path | None, out: Path) -> None:
    """Write train.txt, validation.txt and held_out.txt, and source.json, which says where they come from.

    Args:
        deb: the Debian package as a file; None fetches it.
        out: folder, made where it is missing.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if deb is None:
            try:
                run("apt-get", "download", PACKAGE, cwd=scratch)
            except UserError as error:
                raise UserError(f"{error}\nrun `apt-get update` first, or name a file: --deb") from error
            deb = next(scratch.glob("*.deb"))
        run("dpkg-deb", "--extract", deb, scratch / "package")
        novels = [clean(r_strings(raw)) for raw in r_objects((scratch / "package" / DATA).read_bytes())]
        source = {"package": PACKAGE, "version": run("dpkg-deb", "--field", deb, "Version"), "sha256": sha256(deb)}

    out.mkdir(parents=True, exist_ok=True)
    parts = [split(chapters(novel)) for novel in novels]
    for name in TEXTS:
        path = out / f"{name}.txt"
        path.write_text("\n".join(chapter for novel in parts for chapter in novel[name]), encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes, sha256 {sha256(path)}")
    (out / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    print(f"{len(novels)} novels of {source['package']} {source['version']}, sha256 {source['sha256']}")


# Training.


@dataclass(frozen=True)
class Recipe:
    """Shape of the model and settings of its training. Each field is a flag of the same name."""

    vocab: int = 2048
    """Size of the vocabulary in tokens, including 256 bytes and two special tokens."""
    context: int = 512
    """Length of a training window, and maximum length of a sequence, in tokens."""
    dim: int = 256
    """Model width."""
    layers: int = 5
    """Number of transformer blocks."""
    heads: int = 8
    """Number of query heads, each dim / heads wide."""
    kv_heads: int = 4
    """Number of key-value heads."""
    ffn: int = 640
    """Feed-forward width."""
    steps: int = 3000
    """Number of steps of the optimiser."""
    batch: int = 64
    """Number of windows per step."""
    lr: float = 2e-3
    """Highest learning rate: reached after a twentieth of the steps, then a cosine down to zero."""
    weight_decay: float = 0.3
    """AdamW's weight decay on matrices."""
    dropout: float = 0.4
    """Dropout probability of the embedding, and of the output of each attention and feed-forward block."""
    evaluate_every: int = 100
    """Number of steps between evaluations on the validation text."""
    seed: int = 1234
    """Seed of the initial weights, the windows, the dropout and the sample."""


def train_tokenizer(text: str, vocab: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer, which decodes any encoded text to the same bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise UserError(f"--vocab {vocab}: the text gives {tokenizer.get_vocab_size()} tokens (at least 258)")
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, begin), (END, end)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, context: int, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def make_model(recipe: Recipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Return a Llama with float32 weights and tied embeddings, initialised from torch's seed."""
    if recipe.dim % (2 * recipe.heads) or recipe.heads % recipe.kv_heads:
        raise UserError("--dim must be an even multiple of --heads, and --heads a multiple of --kv_heads")
    if recipe.context < 64:
        raise UserError(f"--context {recipe.context}: at least 64, so that the model card's example has room")
    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=recipe.dim,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.dim // recipe.heads,
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
    )
    model = LlamaForCausalLM(config)
    check_size(2 * model.num_parameters())  # before the training, not after it
    return model


def check_size(size: int) -> None:
    """Raise UserError if the weights take more bytes than the repository allows."""
    if size > MAX_BYTES:
        raise UserError(f"model.safetensors has {size} bytes, at most {MAX_BYTES}: take less --layers, --dim or --ffn")


def add_dropout(model: LlamaForCausalLM, rate: float) -> None:
    """Add residual dropout, which transformers' Llama has no option for; it is off in evaluation."""

    def drop(module: torch.nn.Module, _: object, output: Tensor) -> Tensor:
        return F.dropout(output, rate, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Return the tokens of a text without special tokens, int64 [N]."""
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


def token_losses(model: LlamaForCausalLM, targets: Tensor) -> Tensor:
    """Return the loss of each token of targets, int64 [B, C], given those before it in its row and the begin of text:
    [B * C]."""
    inputs = F.pad(targets[:, :-1], (1, 0), value=model.config.bos_token_id)
    logits = model(inputs, use_cache=False).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


@torch.no_grad()
def text_loss(model: LlamaForCausalLM, ids: Tensor) -> float:
    """Return the sum of the losses of all tokens of a text, int64 [N], cut into windows of C tokens that do not
    overlap."""
    model.eval()
    context = model.config.max_position_embeddings
    whole = len(ids) // context * context
    batches = [*ids[:whole].view(-1, context).split(EVALUATION_BATCH), ids[None, whole:]]
    return math.fsum(token_losses(model, batch).double().sum().item() for batch in batches if batch.numel())


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then a cosine that ends at zero."""
    warmup = max(1, recipe.steps // 20)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup))) / 2


@dataclass
class Best:
    """Weights with the lowest validation loss so far."""

    loss: float = math.inf
    """Validation loss in nats per token."""
    step: int = 0
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def fit(model: LlamaForCausalLM, train: Tensor, validation: Tensor, bytes_per_token: float, recipe: Recipe) -> Best:
    """Train the model, and leave it with the weights that were best on the validation text.

    Args:
        train, validation: int64 [N] on the model's device.
        bytes_per_token: of the validation text, for what is printed.
    """
    device, context = model.device, recipe.context
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    draw = torch.Generator().manual_seed(recipe.seed)
    best, losses, since = Best(), [], time.perf_counter()
    for step in range(recipe.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        starts = torch.randint(len(train) - context + 1, (recipe.batch, 1), generator=draw).to(device)
        targets = train[starts + torch.arange(context, device=device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = token_losses(model, targets).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())

        if (step + 1) % recipe.evaluate_every == 0 or step + 1 == recipe.steps:
            train_loss = torch.stack(losses).mean().item()  # waits for the device
            rate = len(losses) * targets.numel() / (time.perf_counter() - since)
            loss_now = text_loss(model, validation) / len(validation)
            if loss_now < best.loss:
                weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
                best = Best(loss_now, step + 1, weights)
            print(
                f"step {step + 1}/{recipe.steps}: training {train_loss:.4f}, validation {loss_now:.4f} nats/token "
                f"({loss_now / math.log(2) / bytes_per_token:.4f} bits/byte), {rate:.0f} tokens/s",
                flush=True,
            )
            losses, since = [], time.perf_counter()
    if not best.weights:
        raise UserError(f"no finite validation loss in {recipe.steps} steps: take a lower --lr")
    model.load_state_dict(best.weights)
    return best


def write(model: LlamaForCausalLM, tokenizer: Tokenizer, sample: bool, seed: int) -> str:
    """Return PROMPT and the model's continuation: the likeliest tokens, or a sample (temperature 0.8, top_k 200)."""
    torch.manual_seed(seed)
    prompt = torch.tensor([tokenizer.encode(PROMPT).ids], device=model.device)
    drawing = {"do_sample": True, "temperature": 0.8, "top_k": 200} if sample else {"do_sample": False}
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=min(NEW_TOKENS, model.config.max_position_embeddings - prompt.shape[1]),
        pad_token_id=model.config.eos_token_id,
        **drawing,
    )
    return tokenizer.decode(ids[0].tolist())


def read_texts(folder: Path) -> dict[str, str]:
    """Return what `text` has written."""
    for name in [*(f"{name}.txt" for name in TEXTS), "source.json"]:
        if not (folder / name).is_file():
            raise UserError(f"no {folder / name}: make it with `python scripts/train_demo.py text --out {folder}`")
    return {name: (folder / f"{name}.txt").read_text(encoding="utf-8") for name in TEXTS}


def train(texts_at: Path, out: Path, device: str, recipe: Recipe, command: str) -> None:
    """Train tokenizer and model, and write the folder `out` in Hugging Face's format, including the model card."""
    texts = read_texts(texts_at)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no GPU")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a help in finding mistakes, and slow

    tokenizer = train_tokenizer(texts["train"], recipe.vocab)
    ids = {name: encode(tokenizer, text) for name, text in texts.items()}
    if min(map(len, ids.values())) < 2 * recipe.context:
        sizes = ", ".join(f"{name} {len(value)}" for name, value in ids.items())
        raise UserError(f"not enough text: each part needs 2 windows of {recipe.context} tokens, but has {sizes}")
    bytes_per_token = {name: len(text.encode()) / len(ids[name]) for name, text in texts.items()}
    model = make_model(recipe, tokenizer).to(device)
    print(f"{model.num_parameters()} parameters, {len(ids['train'])} training tokens", flush=True)
    add_dropout(model, recipe.dropout)
    start = time.perf_counter()
    on_device = {name: ids[name].to(device) for name in ("train", "validation")}
    best = fit(model, on_device["train"], on_device["validation"], bytes_per_token["validation"], recipe)
    seconds = time.perf_counter() - start

    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # comes out readable for its owner alone
    check_size((out / "model.safetensors").stat().st_size)
    save_tokenizer(tokenizer, recipe.context, out)
    (out / "held_out.txt").write_bytes((texts_at / "held_out.txt").read_bytes())

    # From here on everything is as a user of the folder has it. The arithmetic is float32, so that a CPU and a GPU give
    # the same losses.
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).to(device)
    as_read = AutoTokenizer.from_pretrained(out)(texts["held_out"], verbose=False)["input_ids"]
    if as_read != tokenizer.encode(texts["held_out"]).ids:
        raise AssertionError("transformers reads another tokenizer than the one that was trained")
    losses = {name: text_loss(model, ids[name].to(device)) / len(ids[name]) for name in TEXTS}
    bits = {name: loss / math.log(2) / bytes_per_token[name] for name, loss in losses.items()}
    for name in TEXTS:
        print(f"{name}: {losses[name]:.4f} nats/token, {bits[name]:.4f} bits/byte (weights as saved)")
    source = json.loads((texts_at / "source.json").read_text(encoding="utf-8"))
    rows = "\n".join(
        f"| {name} | {len(texts[name].encode())} | {len(ids[name])} | {losses[name]:.4f} | {bits[name]:.4f} "
        f"| `{sha256(texts_at / f'{name}.txt')}` |"
        for name in TEXTS
    )
    card = CARD.format(
        **dataclasses.asdict(recipe),
        **source,
        parameters=model.num_parameters(),
        bytes=(out / "model.safetensors").stat().st_size,
        head_dim=recipe.dim // recipe.heads,
        rows=rows,
        share=SHARE,
        best=best,
        command=command,
        texts_at=texts_at,
        seconds=seconds,
        epochs=recipe.steps * recipe.batch * recipe.context / len(ids["train"]),
        device=torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})",
        precision="bfloat16 autocast over float32 weights" if device == "cuda" else "float32",
        date=datetime.datetime.now(datetime.UTC).date(),
        versions=f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}",
        greedy=quote(write(model, tokenizer, False, recipe.seed)),
        sample=quote(write(model, tokenizer, True, recipe.seed)),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    print(f"{out}: weights of step {best.step}, trained for {seconds:.0f} s")


def quote(text: str) -> str:
    """Return a text as a quotation in Markdown."""
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


CARD = """\
---
language: en
license: cc0-1.0
library_name: transformers
pipeline_tag: text-generation
---
# gptbench's demo model
A very small Llama that continues text in the manner of Jane Austen. It is there so that gptbench has real weights at
hand, with a real tokenizer and a loss that can get worse; it is of no other use.

## Architecture
Llama, {parameters} parameters, tied embeddings: vocabulary {vocab}, context {context}, width {dim}, {layers} layers,
{heads} heads of width {head_dim}, {kv_heads} key-value heads, feed-forward width {ffn}, rope_theta 10000.

`model.safetensors`: bfloat16, {bytes} bytes. Tokenizer: byte-level BPE, learned from the training text;
it puts `<|begin_of_text|>` first.

## Data
The six novels of Jane Austen (1775-1817): in the public domain. From the Debian package {package} {version}:
the R package janeaustenr, copyright 2016-2017 Julia Silge, MIT licence, which names Project Gutenberg's texts 105, 121,
141, 158, 161 and 1342 as its source. Sha256 of the package's file:
`{sha256}`.

Lines were joined to paragraphs; emphasis, ornaments, a footnote and notes on editions were left out. Of each novel the
last chapters, at least {share:.0%} of it, are held out (`held_out.txt`), and as much before them is for validation.

## Licence
Weights, tokenizer and `held_out.txt`: CC0 1.0, since nothing but text in the public domain went into them.

## Losses
| text | bytes | tokens | nats/token | bits/byte | sha256 |
|---|---|---|---|---|---|
{rows}

Of the weights as saved, with float32 arithmetic. A text is cut into windows of {context} tokens that do not overlap,
each with `<|begin_of_text|>` before it; the loss is the mean over all tokens. Tokenizer and weights were learned from
`train` alone. The checkpoint, step {best.step} of {steps}, was chosen by its loss on `validation`
({best.loss:.4f} before rounding to bfloat16), so that number flatters a little; `held_out` was scored once, after that.

## Training
```
python scripts/train_demo.py text --out {texts_at}
{command}
```
{date}, {device}, {seconds:.0f} s, seed {seed}.
{versions}.
AdamW, {precision}; learning rate {lr:g} with warm-up and cosine, weight decay {weight_decay:g},
dropout {dropout:g}; {steps} steps of {batch} windows, {epochs:.3g} times the training text.

The texts come out the same, byte for byte, wherever they are made from that package, and so does the tokenizer with
that version of tokenizers. The weights are seeded. On a CPU they come out the same; on a GPU they do not quite, as the
backward pass of attention is not deterministic there.

## Limitations
So few parameters and so little text give the sound of the novels, and no sense beyond a sentence or two. It knows no
language but theirs, their views of people included, may repeat passages of the training text, and follows no
instructions. It was never shown an end of text, and so does not end by itself.

## What it writes
Greedy:

{greedy}

Sampled (temperature 0.8, top_k 200, seed {seed}):

{sample}
"""


def main(arguments: list[str]) -> int:
    """Run the command, and return the exit code."""
    parser = argparse.ArgumentParser(description="Makes the demo model.")
    stages = parser.add_subparsers(dest="stage", required=True)
    text = stages.add_parser("text", help="fetch, clean and split the novels")
    text.add_argument("--out", type=Path, required=True, help="folder for the texts")
    text.add_argument("--deb", type=Path, help=f"{PACKAGE} as a file, instead of fetching it")
    training = stages.add_parser("train", help="train tokenizer and model")
    training.add_argument("--text", type=Path, required=True, help="folder that `text` has written")
    training.add_argument("--out", type=Path, required=True, help="folder for the model")
    training.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    training.add_argument("--threads", type=int, help="of the CPU")
    for field in dataclasses.fields(Recipe):
        training.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help="%(default)s")
    options = parser.parse_args(arguments)
    try:
        if options.stage == "text":
            make_text(options.deb, options.out)
        else:
            if options.threads:
                torch.set_num_threads(options.threads)
            recipe = Recipe(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)})
            command = shlex.join(["python", "scripts/train_demo.py", *arguments])
            train(options.text, options.out, options.device, recipe, command)
    except UserError as error:
        print(f"train_demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

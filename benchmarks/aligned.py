"""Two tokenizers on one text: what they have in common, and what the loss head for them costs beside TRL's.

    python -m benchmarks.aligned [--student JSON --teacher JSON --text FILE ...] [--quick] [--threads N] [--json PATH]

Tokenizers are `tokenizer.json` files; texts .txt (cut at blank lines) or .jsonl files (all strings of a line). Without
them two tokenizers are trained on text of the task families. The loss head takes a part of the first text, forward KL,
with random states of widths 256 and 512, forward and backward, beside TRL's `ULDLoss` (GOLD's: hybrid, merged by the
chain rule) on whole logits, and the four matrix products alone. Times are the best of alternating rounds; memory is the
peak resident size of a process of its own beyond the inputs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.common import Row, envelope, write_json
from distill.model.tokenizer import train_tokenizer
from distill.objectives.aligned import AlignedTargets
from distill.objectives.aligned_head import aligned_head_loss
from distill.objectives.divergences import IGNORED, Objective
from distill.objectives.events import Unmatched, events_of
from distill.objectives.head import Head
from distill.records import INSTRUCTION, write_parquet
from distill.train.aligned import cuts_of
from distill.train.aligned_rows import Aligned, align, spelling_of
from distill.train.batches import Sequences, read_sequences
from distill.train.corpus import tokenizer_texts

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
)
TEMPLATE += "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
WIDTHS = (256, 512)
Options = argparse.Namespace


def tokenizers(options: Options) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """The files', or two that are trained on the spot; both with one plain chat template."""
    if options.student is not None:
        pair = [PreTrainedTokenizerFast(tokenizer_file=str(path)) for path in (options.student, options.teacher)]
        for tokens in pair:
            tokens.add_special_tokens({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})
    else:
        pair = [
            train_tokenizer(tokenizer_texts(seed, 1000), vocab_size=size, max_positions=1 << 20)
            for seed, size in ((0, 700), (1, 1500))
        ]
    for tokens in pair:
        tokens.chat_template = TEMPLATE
    return pair[0], pair[1]


def texts(options: Options) -> Iterator[tuple[str, list[str]]]:
    """(name, texts) of each file."""
    if not options.text:
        yield "tasks", list(tokenizer_texts(2, options.rows))
    for path in options.text:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
            found = ["\n".join(value for value in row.values() if isinstance(value, str)) for row in rows]
        else:
            found = [part.strip() for part in content.split("\n\n")]
        yield path.name, [text for text in found if len(text) > 20][: options.rows]


def aligned_of(
    found: list[str], student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast
) -> tuple[Sequences, Aligned, float]:
    """The texts as answers in both tokenizations, and the seconds that aligning them takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        said = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": text}] for text in found]
        write_parquet(path, [{"messages": messages} for messages in said], INSTRUCTION)
        rows = read_sequences(student, [path], 1 << 20)
        start = time.perf_counter()
        aligned = align(rows, [path], student, teacher)
        return rows, aligned, time.perf_counter() - start


@dataclass(frozen=True)
class Inputs:
    """States and heads of one part of a text, and what TRL's loss asks for besides."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    targets: AlignedTargets
    tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]


def inputs_of(options: Options) -> Inputs:
    """The first `--tokens` tokens of the student's on the first text."""
    student, teacher = tokenizers(options)
    rows, aligned, _ = aligned_of(["\n\n".join(next(texts(options))[1])], student, teacher)
    row = next(iter(aligned.rows.values()))
    last = row.spans[options.tokens]
    scored = [label for label in rows.labels[0] if label != IGNORED]
    spans = [span for span in row.spans if 0 <= span < last]
    theirs = [span for span in row.their_spans if span < last]
    generator = torch.Generator().manual_seed(0)
    sizes = len(student), len(teacher)
    hidden, other = (
        torch.randn(len(part), width, generator=generator) for part, width in zip((spans, theirs), WIDTHS, strict=True)
    )
    weight, head = (
        torch.randn(size, width, generator=generator) * 2 * width**-0.5
        for size, width in zip(sizes, WIDTHS, strict=True)
    )
    ends = (student.eos_token_id, teacher.eos_token_id)
    events = events_of(spelling_of(student), spelling_of(teacher), rows=sizes, ends=ends, unmatched="prefix")
    targets = AlignedTargets(
        spans_N=torch.tensor(spans),
        spans_M=torch.tensor(theirs),
        ids_M=torch.tensor([row.ids[place] for place in row.places[: len(theirs)]]),
        hidden_MK=other,
        cuts=cuts_of([cut for cut in row.cuts if cut.span < last]),
        head=Head(head),
        events=events,
    )
    labels = torch.tensor(scored[: len(spans)])
    return Inputs(hidden.requires_grad_(), weight.requires_grad_(), labels, targets, (student, teacher))


def ours(inputs: Inputs, unmatched: Unmatched) -> Callable[[], Tensor]:
    """The loss head."""
    spellings, sizes = (
        [spelling_of(tokens) for tokens in inputs.tokenizers],
        [len(tokens) for tokens in inputs.tokenizers],
    )
    ends = inputs.tokenizers[0].eos_token_id, inputs.tokenizers[1].eos_token_id
    events = events_of(spellings[0], spellings[1], rows=(sizes[0], sizes[1]), ends=ends, unmatched=unmatched)
    targets = replace(inputs.targets, events=events)
    return lambda: aligned_head_loss(inputs.hidden, Head(inputs.weight), targets, inputs.labels, Objective()).loss


def trl(inputs: Inputs) -> Callable[[], Tensor]:
    """GOLD's loss on whole logits: forward KL on shared tokens, ULD on the others, spans merged by the chain rule."""
    from trl.experimental.gold.gold_trainer import ULDLoss  # warns that it is experimental

    settings = {"crossentropy_weight": 0.0, "distillation_weight": 1.0, "token_merge_strategy": "bayesian"}
    settings |= {f"{side}_temperature": 1.0 for side in ("student", "teacher")}
    settings |= {f"skip_{side}_eos": False for side in ("student", "teacher")}
    settings |= {"use_hybrid_loss": True, "hybrid_matched_weight": 1.0, "hybrid_unmatched_weight": 1.0}
    named = {f"uld_{name}": value for name, value in settings.items()}
    loss = ULDLoss(SimpleNamespace(use_extended_uld=True, beta=0.0, **named), *inputs.tokenizers)
    labels, ids, offsets = [], [], []
    for said, tokens in zip((inputs.labels, inputs.targets.ids_M), inputs.tokenizers, strict=True):
        lengths = torch.tensor([len(text) for text in spelling_of(tokens).of(said.tolist())])
        edges = torch.stack([lengths.cumsum(0) - lengths, lengths.cumsum(0)], -1)
        offsets.append(torch.cat([torch.zeros(1, 2, dtype=torch.long), edges])[None])
        ids.append(torch.cat([torch.zeros(1, dtype=torch.long), said])[None])
        labels.append(torch.cat([torch.tensor([IGNORED]), said])[None])

    def run() -> Tensor:
        logits = [
            torch.nn.functional.pad(states @ weight.T, (0, 0, 0, 1))[None]  # the last token predicts nothing
            for states, weight in (
                (inputs.hidden, inputs.weight),
                (inputs.targets.hidden_MK, inputs.targets.head.weight),
            )
        ]
        found: Tensor = loss(*logits, *labels, *ids, *offsets).sum()
        return found

    return run


def products(inputs: Inputs) -> Callable[[], Tensor]:
    """The two projections, and the student's two gradients."""

    def run() -> Tensor:
        theirs = inputs.targets.hidden_MK @ inputs.targets.head.weight.T
        return (inputs.hidden @ inputs.weight.T).sum() + theirs[0, 0]

    return run


WAYS: dict[str, Callable[[Inputs], Callable[[], Tensor]]] = {
    "ours, prefix": lambda inputs: ours(inputs, "prefix"),
    "ours, uld": lambda inputs: ours(inputs, "uld"),
    "TRL's ULDLoss": trl,
    "products alone": products,
}


def once(act: Callable[[], Tensor], inputs: Inputs) -> float:
    """Seconds of a forward and backward pass."""
    inputs.hidden.grad = inputs.weight.grad = None
    start = time.perf_counter()
    act().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def peak(name: str, options: Options) -> float:
    """Bytes beyond the inputs at the highest resident size of a first pass, in a process of its own."""
    torch.set_num_threads(options.threads)
    inputs = inputs_of(options)
    act = WAYS[name](inputs)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_bytes("VmRSS")
    once(act, inputs)
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1]) * 1024


def head_rows(options: Options) -> list[Row]:
    """Seconds and memory of each way."""
    inputs = inputs_of(options)
    acts = {name: way(inputs) for name, way in WAYS.items()}
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(options.rounds + 1):
        for name, act in acts.items():
            seconds = once(act, inputs)
            if number:
                taken[name].append(seconds)
    rows = []
    context = multiprocessing.get_context("spawn")
    for name in acts:
        with context.Pool(1) as pool:
            bytes_ = pool.apply(peak, (name, options))
        rows += [Row(f"{name}, time", min(taken[name]) * 1e3, "ms"), Row(f"{name}, memory", bytes_ / 2**20, "MiB")]
    return rows


def text_rows(options: Options) -> list[Row]:
    """What both tokenizers have in common on each text, and how fast that is found."""
    student, teacher = tokenizers(options)
    rows = []
    for name, found in texts(options):
        sequences, aligned, seconds = aligned_of(found, student, teacher)
        shares, tokens = aligned.shares(), sum(sequences.trained)
        rows.append(Row(f"{name}: the student's tokens that are compared", shares["compared_tokens"], "share"))
        rows.append(Row(f"{name}: one to one", shares["paired_tokens"], "share"))
        rows.append(Row(f"{name}: aligned", tokens / seconds, "tokens/s"))
    return rows


def main() -> None:
    """Measures, prints, and writes the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--student", type=Path, help="tokenizer.json")
    parser.add_argument("--teacher", type=Path, help="tokenizer.json")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help=".txt or .jsonl")
    parser.add_argument("--rows", type=int, default=300, help="of each text")
    parser.add_argument("--tokens", type=int, default=512, help="of the loss head")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds = 50, 1
    torch.set_num_threads(options.threads)
    student, teacher = tokenizers(options)
    spellings = spelling_of(student), spelling_of(teacher)
    sizes, ends = (len(student), len(teacher)), (student.eos_token_id, teacher.eos_token_id)
    events = events_of(*spellings, rows=sizes, ends=ends, unmatched="prefix")
    rows = [Row("the student's vocabulary that is shared", events.num_shared / sizes[0], "share")]
    rows += text_rows(options) + head_rows(options)
    for row in rows:
        print(f"{row.name:60s} {row.value:12,.3f} {row.unit}")
    if options.json is not None:
        names = [str(path.name) for path in (options.student, options.teacher, *options.text) if path is not None]
        command = " ".join(["python -m benchmarks.aligned", *names, *(["--quick"] if options.quick else [])])
        details = {"files": names, "vocabularies": sizes, "tokens": options.tokens, "widths": WIDTHS}
        write_json(options.json, envelope(what="aligned", command=command, rows=rows, details=details))


if __name__ == "__main__":
    main()

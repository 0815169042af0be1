"""Span distances against dictionaries of texts in float64, against kd where the tokenizers are equal, and TRL's ULD."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from distill.objectives.aligned import AlignedTargets, Tokens, sorted_distance, span_distances
from distill.objectives.aligned_head import aligned_head_loss, chunks
from distill.objectives.divergences import IGNORED, Objective
from distill.objectives.events import events_of
from distill.objectives.head import Head, head_loss
from distill.text.token_bytes import Spelling
from distill.train.aligned import cuts_of
from tests.objectives.two_vocabularies import (
    CUTS,
    OUR_IDS,
    OUR_SPANS,
    OURS,
    ROWS,
    THEIR_IDS,
    THEIR_SPANS,
    cuts_between,
    events,
    reference,
    sides,
    some_logits,
)

DIVERGENCES = ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"]


def test_events_by_hand() -> None:
    """Shared: a, b, c, un, able, " the", the ends. "unab" begins with un, "ab" and "abc" with a; no <user>."""
    found = events()
    a, b, c, un, able, the, end = range(7)
    assert found.count == 7 and found.num_shared == 7
    assert found.ours.events_V.tolist() == [a, b, c, un, able, the, a, un, a, end, 7, 7]
    assert found.theirs.events_V.tolist() == [b, un, un, a, c, the, a, 7, b, able, end, 7, 7]
    assert found.ours.excluded_V.nonzero().flatten().tolist() == [10, 11]
    assert found.theirs.excluded_V.nonzero().flatten().tolist() == [11, 12]
    assert found.theirs.unmatched.tolist() == [7]  # nothing that is shared begins "e"
    apart = events("uld")
    assert apart.ours.unmatched.tolist() == [6, 7, 8] and apart.theirs.unmatched.tolist() == [2, 6, 7, 8]
    assert apart.theirs.excluded_V.nonzero().flatten().tolist() == [11, 12]


def test_a_span_of_two_tokens_by_hand() -> None:
    """The student says "un" and "able", the teacher "unable", which the student lacks: it begins with "un".

    Q(a) = 1/2, Q(un) = 1/2, then Q(able | un) = 1/4; P(a) = 1/4, P(un) = 1/4, P(unable) = 1/2. First a: 1/2 against
    1/4, un: 1/2 against 3/4; then "able" behind "un": 1/4 against 1/2 of 3/4.
    """
    spellings = Spelling({0: b"a", 1: b"un", 2: b"able"}, {}), Spelling({0: b"a", 1: b"un", 2: b"unable"}, {})
    q = torch.tensor([[0.5, 0.5, 1e-30], [0.75, 1e-30, 0.25]], dtype=torch.float64)
    p = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
    spans = cuts_between((spellings[0], [1, 2], [0, 0]), (spellings[1], [2], [0]))
    assert spans.table_J4.tolist() == [[0, 0, 0, 1], [0, 1, 0, 1]]
    assert spans.alike_E2.tolist() == [[0, 1], [1, 2]] and spans.other_alike_E2.tolist() == [[0, 1], [0, 2], [1, 2]]
    student = Tokens(q.log(), torch.tensor([1, 2]), torch.tensor([0, 0]))
    teacher = Tokens(p.log(), torch.tensor([2]), torch.tensor([0]))
    shared = events_of(*spellings, rows=(3, 3), ends=None, unmatched="prefix")
    value, same = span_distances(student, teacher, spans, shared, Objective("tvd"), 1.0)
    assert value.item() == pytest.approx(1 / 4 + (2 / 3 - 1 / 4), abs=1e-4) and same.tolist() == [True]
    value, _ = span_distances(student, teacher, spans, shared, Objective("forward_kl"), 1.0)
    first = 1 / 4 * math.log(1 / 2) + 3 / 4 * math.log(3 / 2)
    then = 2 / 3 * math.log((2 / 3) / (1 / 4)) + 1 / 3 * math.log((1 / 3) / (3 / 4))
    assert value.item() == pytest.approx(first + then, abs=1e-4)
    apart = events_of(*spellings, rows=(3, 3), ends=None, unmatched="uld")
    value, _ = span_distances(student, teacher, spans, apart, Objective("tvd"), 1.0)
    assert value.item() == pytest.approx((3 / 4 - 1 / 2) + (2 / 3 - 1 / 4), abs=1e-4)  # "un", then "able", or not


def test_a_token_beside_longer_ones_by_hand() -> None:
    """Both say "a", of which the student also has "ab": the event holds 3/4, of which 1/3 is "a" and not "ab".

    The teacher's 1/2 of "a" and "ac" would both be "a" first for the student: certain, against 1/3.
    """
    spellings = Spelling({0: b"a", 1: b"b", 2: b"ab"}, {}), Spelling({0: b"b", 1: b"a", 2: b"ac"}, {})
    spans = cuts_between((spellings[0], [0], [0]), (spellings[1], [1], [0]))
    assert spans.alike_E2.tolist() == [[0, 0]] and spans.other_alike_E2.tolist() == [[0, 1], [0, 2]]
    student = Tokens(torch.tensor([[0.25, 0.25, 0.5]]).log(), torch.tensor([0]), torch.tensor([0]))
    teacher = Tokens(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([1]), torch.tensor([0]))
    shared = events_of(*spellings, rows=(3, 3), ends=None, unmatched="prefix")
    value, _ = span_distances(student, teacher, spans, shared, Objective("tvd"), 1.0)
    assert value.item() == pytest.approx((3 / 4 - 1 / 2) + (1 - 1 / 3), abs=1e-4)


@pytest.mark.parametrize("unmatched", ["prefix", "uld"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_against_dictionaries(name: str, unmatched: str) -> None:
    """Values and, by autograd through either, gradients."""
    for seed, temperature in ((0, 1.0), (5, 1.7)):
        objective = Objective(name, beta=0.3, temperature=temperature)  # type: ignore[arg-type]
        student, teacher = sides(seed)
        ours, theirs = (replace(student, logits_CV=student.logits_CV.clone().requires_grad_()) for _ in range(2))
        found, _ = span_distances(ours, teacher, CUTS, events(unmatched), objective, 0.6)
        expected = torch.stack(reference(theirs, teacher, objective, unmatched, 0.6))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.logits_CV.grad, theirs.logits_CV.grad, rtol=1e-8, atol=1e-10)
        assert (
            ours.logits_CV.grad is not None and not ours.logits_CV.grad[:, 10:].any()
        )  # what is ruled out learns nothing


@pytest.mark.parametrize("unmatched", ["prefix", "uld"])
def test_models_that_agree_have_no_distance(unmatched: str) -> None:
    """Equal tokenizers and logits, spans of any length: nothing to learn."""
    logits = some_logits(12, 6, 3)
    ids, numbers = [0, 3, 4, 1, 6, 9], [0, 1, 1, 2, 2, 3]
    found = cuts_between((OURS, ids, numbers), (OURS, ids, numbers))
    side = Tokens(logits.requires_grad_(), torch.tensor(ids), torch.tensor(numbers))
    common = events_of(OURS, OURS, rows=(12, 12), ends=(9, 9), unmatched=unmatched)  # type: ignore[arg-type]
    for name in DIVERGENCES:
        value, same = span_distances(
            side, replace(side, logits_CV=logits.detach()), found, common, Objective(name), 1.0
        )  # type: ignore[arg-type]
        assert value.abs().max() < 1e-12 and bool(same.all())


def test_sorted_distance_by_hand_and_of_trl() -> None:
    """(0.5, 0.3, 0.2) against (0.6, 0.4): 0.1 + 0.1 + 0.2. TRL: `ULDLoss`, one token a span, bayesian slices."""
    q, p = torch.tensor([[0.3, 0.5, 0.2]]), torch.tensor([[0.4, 0.6]])
    assert sorted_distance(q, p).item() == pytest.approx(0.4)
    from trl.experimental.gold.gold_trainer import ULDLoss

    settings = {
        "crossentropy_weight": 0.0,
        "distillation_weight": 1.0,
        "student_temperature": 1.5,
        "teacher_temperature": 1.5,
    }
    settings |= {"skip_student_eos": False, "skip_teacher_eos": False, "token_merge_strategy": "bayesian"}
    config = SimpleNamespace(use_extended_uld=True, **{f"uld_{name}": value for name, value in settings.items()})
    loss = ULDLoss(config)
    count, ids = 5, torch.tensor([[7, 1, 2, 0, 3, 1]])
    ours, theirs = some_logits(9, count + 1, 0), some_logits(14, count + 1, 1)
    labels = torch.where(torch.arange(count + 1)[None] > 0, ids, IGNORED)
    offsets = torch.tensor([[[place - 1, place] for place in range(count + 1)]])
    expected = loss(ours[None], theirs[None], labels, labels, ids, ids, offsets, offsets)
    # Vocabularies that share nothing: every token is unmatched. Only the first `count` rows of logits predict one.
    common = events_of(
        Spelling({index: b"s%d" % index for index in range(9)}, {9: b"<s>"}),
        Spelling({index: b"t%d" % index for index in range(14)}, {14: b"<t>"}),
        rows=(10, 15), ends=(9, 14), unmatched="uld",
    )  # fmt: skip
    places = torch.arange(count)
    student, teacher = (
        # an end of turn with no mass, for something must be shared
        Tokens(torch.nn.functional.pad(logits[:count], (0, 1), value=-1e9), ids[0, 1:], places)
        for logits in (ours, theirs)
    )
    found, _ = span_distances(student, teacher, cuts_of([]), common, Objective(temperature=1.5), 1.0)
    assert found.mean().item() == pytest.approx(expected.item(), rel=1e-6)


def head(rows: int, width: int, seed: int, *, bias: bool = False, softcap: float | None = None) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, dtype=torch.float64, generator=generator).requires_grad_()
    values = torch.randn(rows, dtype=torch.float64, generator=generator).requires_grad_() if bias else None
    return Head(weight, values, 0.7 if softcap else 1.0, softcap)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
@pytest.mark.parametrize(("bias", "softcap"), [(False, None), (True, 3.0)])
def test_the_head_is_the_sum_over_spans(chunk_tokens: int, bias: bool, softcap: float | None) -> None:
    """Tokens outside of spans have cross entropy alone; gradients of states, head and bias as from whole logits."""
    objective = Objective("jsd", temperature=1.3, ce_weight=0.25)
    generator = torch.Generator().manual_seed(4)
    states, other = (torch.randn(n, w, dtype=torch.float64, generator=generator) for n, w in ((10, 5), (6, 4)))
    labels = torch.tensor([IGNORED, 5, *OUR_IDS[:5], IGNORED, *OUR_IDS[5:]])
    spans = torch.tensor([-1, *OUR_SPANS])
    teacher = head(ROWS[1], 4, 1, softcap=softcap)
    table = replace(CUTS, table_J4=CUTS.table_J4 + torch.tensor([0, 1, 0, 0]))  # behind the token outside of spans
    targets = AlignedTargets(
        spans, torch.tensor(THEIR_SPANS), torch.tensor(THEIR_IDS), other, table, teacher, events("uld"), 0.5
    )
    results = []
    for whole in (False, True):
        hidden, student = states.clone().requires_grad_(), head(ROWS[0], 5, 2, bias=bias, softcap=softcap)
        if whole:
            logits = student.logits(hidden)
            scored = (labels != IGNORED).nonzero().flatten()
            inside = scored[1:]
            distances, same = span_distances(
                Tokens(logits[inside], labels[inside], torch.tensor(OUR_SPANS)),
                Tokens(teacher.logits(other), torch.tensor(THEIR_IDS), torch.tensor(THEIR_SPANS)),
                CUTS, events("uld"), objective, 0.5,
            )  # fmt: skip
            ce = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            loss = 0.75 * 1.69 * distances.sum() + 0.25 * ce
            agreement = (same * torch.tensor([2, 1, 1, 2, 1])).sum()
            accuracy = (logits.argmax(-1) == labels).sum()
            metrics = [loss, distances.sum(), ce, agreement, accuracy, torch.tensor(8)]
        else:
            sums = aligned_head_loss(hidden, student, targets, labels, objective, chunk_tokens=chunk_tokens)
            loss = sums.loss
            metrics = [loss, sums.divergence, sums.cross_entropy, sums.agreement, sums.accuracy, sums.weight]
        (2 * loss).backward()
        gradients = [hidden.grad, student.weight.grad, *([student.bias.grad] if student.bias is not None else [])]
        results.append(([value.item() for value in metrics], gradients))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for found, expected in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert teacher.weight.grad is None


@pytest.mark.parametrize("unmatched", ["prefix", "uld"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_tokenizers_give_ordinary_kd(name: str, unmatched: str) -> None:
    """Loss, sums and gradients, in float32, with a padded vocabulary on the teacher's side."""
    spelling = Spelling({index: b"t%d." % index for index in range(28)}, {28: b"<s>", 29: b"<end>"})
    common = events_of(spelling, spelling, rows=(30, 33), ends=(29, 29), unmatched=unmatched)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    states, other, weight, theirs = (
        torch.randn(*shape, generator=generator) for shape in ((9, 8), (9, 6), (30, 8), (33, 6))
    )
    labels = torch.randint(0, 30, (9,), generator=generator)
    labels[4] = IGNORED
    scored = labels != IGNORED
    objective = Objective(name, temperature=1.5, ce_weight=0.2)  # type: ignore[arg-type]
    places, none = torch.arange(8), cuts_of([])
    found = []
    for aligned in (False, True):
        hidden, matrix = states.clone().requires_grad_(), weight.clone().requires_grad_()
        if aligned:
            targets = AlignedTargets(places, places, labels[scored], other[scored], none, Head(theirs), common)
            sums = aligned_head_loss(hidden, Head(matrix), targets, labels, objective, chunk_tokens=3)
        else:
            sums = head_loss(hidden, Head(matrix), other, Head(theirs), labels, objective)
        sums.loss.backward()
        found.append([*vars(sums).values(), hidden.grad, matrix.grad])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-5, atol=2e-6)


def test_chunks_are_whole_spans() -> None:
    ours, theirs = [-1, 0, 0, 0, 1, -1, -1, 2, 3, 3, -1], [0, 1, 1, 1, 1, 2, 3]
    for limit in range(1, 12):
        found = list(chunks(ours, theirs, limit))
        assert [n for rows, _ in found for n in range(rows.start, rows.stop)] == list(range(len(ours)))
        assert [n for _, rows in found for n in range(rows.start, rows.stop)] == list(range(len(theirs)))
        for rows, others in found:
            assert {span for span in ours[rows] if span >= 0} == set(theirs[others])
            assert rows.stop - rows.start <= max(limit, 3)
    assert list(chunks([-1, -1], [], 2)) == [(slice(0, 2), slice(0, 0))]


def test_nothing_scored_and_nothing_aligned() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    teacher, student = head(ROWS[1], 4, 1), head(ROWS[0], 5, 2)
    states, none = torch.zeros(0, 4, dtype=torch.float64), cuts_of([])
    targets = AlignedTargets(nothing, nothing, nothing, states, none, teacher, events())
    hidden = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    sums = aligned_head_loss(hidden, student, targets, torch.full((3,), IGNORED), Objective())
    sums.loss.backward()
    assert sums.loss.item() == 0.0 == sums.weight.item() and hidden.grad is not None and not hidden.grad.any()
    outside = replace(targets, spans_N=torch.tensor([-1, -1, -1]))
    sums = aligned_head_loss(hidden, student, outside, torch.tensor([0, 1, 2]), Objective())
    assert sums.loss.item() == 0.0 == sums.divergence.item() and sums.weight.item() == 3 and sums.cross_entropy > 0

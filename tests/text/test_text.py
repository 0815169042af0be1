"""Units, likeness, languages, refusals, personal data and program shapes, by hand-computed values."""

from __future__ import annotations

import pytest

from distill.text.language import language_of
from distill.text.likeness import Likeness, rouge_l
from distill.text.pii import personal_data
from distill.text.refusals import boilerplate_in, refusal_in
from distill.text.syntax import shape
from distill.text.units import grams, length, normalize, units


def test_units_of_both_profiles() -> None:
    assert units("Don't stop: 3 MORE!", "english") == ["don", "t", "stop", "3", "more"]
    assert units("Don't stop: 3 MORE!") == ["don", "t", "stop", "3", "more"]
    assert units("한국어 abc를 12") == ["한", "국", "어", "abc", "를", "12"]
    assert units("한국어", "english") == []
    assert units("東京タワーは高い") == list("東京タワーは高い")
    assert units("Ｆｕｌｌ ｗｉｄｔｈ ﬁx") == ["full", "width", "fix"]
    assert units("हिन्दी भाषा") == ["हिन्दी", "भाषा"]  # vowel signs stay in their word
    assert units("Straße") == ["strasse"]
    assert normalize("  A\n B\u3000C ") == "a b c"


def test_length_and_grams() -> None:
    assert (length("four words are here", "english"), length("four words are here")) == (4, 16)
    assert length("안녕 하세요") == 5
    assert list(grams("abcd", 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(grams(["a"], 3)) == [("a",)] and list(grams([], 3)) == []


def test_likeness_names_what_it_is_like() -> None:
    kept = Likeness(0.7)
    kept.add(units("서울에서 부산까지 기차로 가는 방법을 설명해 주세요"), "first")
    assert kept.too_like(units("서울에서 부산까지 기차로 가는 방법을 설명하세요")) == "first"
    assert kept.too_like(units("김치찌개를 끓이는 순서를 알려 주세요")) is None
    assert rouge_l(units("가나다"), units("가다")) == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the table and it is not happy with this.", "en"),
        ("Die Katze ist auf dem Tisch und sie ist nicht froh.", "de"),
        ("Le chat est sur la table et il n'est pas content de ce repas.", "fr"),
        ("고양이가 식탁 위에 있습니다. GPU를 씁니다.", "ko"),
        ("猫はテーブルの上にいます。", "ja"),
        ("猫在桌子上，它不高兴。", "zh"),
        ("Кошка сидит на столе.", "ru"),
        ("42", None),
        ("```python\nthe = is_of + and_to\n```\n고양이가 식탁 위에 있습니다", "ko"),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("As an AI language model, I do not have feelings.", True),
        ("I cannot provide medical advice.", True),
        ("죄송하지만 그 요청은 도와드릴 수 없습니다.", True),
        ("申し訳ありませんが、お手伝いできません。", True),
        ("很抱歉，我无法回答这个问题。", True),
        ("Es tut mir leid, aber ich kann das nicht.", True),
        ("Sorry is a word of apology. I can help you use it.", False),
        ("The water cannot help but flow downhill.", False),
        ("죄송합니다는 사과하는 말입니다.", False),
    ],
)
def test_refusals(text: str, refuses: bool) -> None:
    assert (refusal_in(text) is not None) == refuses


def test_a_refusal_quoted_late_is_none() -> None:
    assert refusal_in("The story goes on. " * 20 + "I'm sorry, but I can't assist with that.") is None


def test_boilerplate() -> None:
    assert boilerplate_in("Dear [Your Name], hello") == "[your name]"
    assert boilerplate_in("42. I hope this helps!") == "i hope this helps"
    assert boilerplate_in("The list is `[1, 2]`; hope helps people.") is None


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe@mail.de", ["email"]),
        ("write to jane@example.com", []),
        ("card 4111 1111 1111 1111", ["card"]),
        ("card 4111 1111 1111 1112", []),
        ("0000 0000 0000 0000", []),
        ("call +49 30 1234 5678 or (020) 7946 0958", ["phone"]),
        ("call 202-555-0143", []),
        ("pages 100-200, 3.1415 and 2024-01-02", []),
        ("ssn 123-45-6789", ["ssn"]),
        ("900101-1234567", ["korean_id"]),
        ("DE89 3704 0044 0532 0130 00", ["iban"]),
        ("DE88 3704 0044 0532 0130 00", []),
        ("8.8.8.8 and 192.168.0.1", ["ip"]),
        ("127.0.0.1 and 999.1.1.1", []),
        ("key sk-abcdefghijklmnopqrstuv", ["secret"]),
    ],
)
def test_personal_data(text: str, kinds: list[str]) -> None:
    assert personal_data(text) == kinds


def test_shape_sees_structure_and_not_names() -> None:
    first = shape('def f(a):\n    """Doc."""\n    return a + 1  # one')
    assert first == shape("def other(name):\n    return name + 2")
    assert first == ["Module", "FunctionDef", "arguments", "arg", "Return", "BinOp", "Name", "Add", "Constant:int"]
    assert first != shape("def f(a):\n    return a * 1")
    assert shape("def f(:") is None and shape("\0") is None

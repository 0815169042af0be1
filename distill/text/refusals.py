"""Refusals and boilerplate in answers, by the phrases that models use for them in several languages."""

from __future__ import annotations

import re
import unicodedata

_HEAD = 240  # characters in which a refusal shows itself; later it may be quoted
_REFUSALS = re.compile(
    "|".join(
        (
            r"\b(?:i'?m|i am) (?:very |really |so )?sorry,? (?:but )?"
            r"(?:as an ai|i (?:can|could|am|do|must|won)|this|that)",
            r"\bi (?:apologi[sz]e,? but|cannot|can'?t|can not|am unable to|'?m unable to|am not able to|"
            r"'?m not able to|"
            r"won'?t|will not be able to) (?:i |can'?t |cannot )?(?:assist|help|provide|fulfil|comply|answer|create|"
            r"generate|write|discuss|engage|support|do that)",
            r"\bas an? (?:ai|artificial intelligence|large language|language)(?: language)? (?:model|assistant)",
            r"\bi (?:must|have to) (?:decline|refuse)",
            r"죄송(?:합니다|하지만|스럽지만)[^.!?\n]{0,60}(?:없습니다|없어요|어렵습니다)",
            r"(?:ai|인공지능)\s*(?:언어\s*)?모델(?:로서|이기 때문|이므로)",
            r"申し訳(?:ありません|ございません)が?[^。\n]{0,60}(?:できません|できかねます|お答えできない)",
            r"ai\s*(?:言語)?モデル(?:として|なので)",
            r"(?:很?抱歉|对不起)[^。\n]{0,40}(?:无法|不能|不可以)",
            r"作为(?:一个|一名)?(?:ai|人工智能)",
            r"\bes tut mir leid,? aber ich kann",
            r"\bals (?:ki|künstliche intelligenz|ki-sprachmodell)\b",
            r"\bje (?:suis )?désolé[e]?,? mais je ne peux",
            r"\ben tant qu(?:e |'|’)(?:ia|intelligence artificielle|modèle)",
            r"\blo siento,? (?:pero )?no puedo",
            r"\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje)",
        )
    )
)
_BOILERPLATE = re.compile(
    "|".join(
        (
            r"\[(?:insert|your|enter|add) [^\]\n]{1,40}\]",
            r"\blorem ipsum\b",
            r"\b(?:is there anything else|let me know if (?:you|there)|feel free to ask|i hope (?:this|that) helps)",
            r"\bregenerate response\b",
            r"\bknowledge cutoff\b|\bmy (?:last|training) (?:update|data)",
            r"(?:더 궁금한 (?:점|것)이 있으(?:면|시면)|도움이 되(?:었|셨)(?:기를|길) 바랍니다)",
            r"(?:お役に立てれば幸いです|他に(?:何か)?ご質問)",
            r"希望(?:这|以上)[^。\n]{0,12}(?:帮助|有帮助)|还有(?:其他|什么)问题",
        )
    )
)


def refusal_in(text: str) -> str | None:
    """The words with which the answer begins to refuse; None where it does not."""
    return _found(_REFUSALS, text.strip()[:_HEAD])


def boilerplate_in(text: str) -> str | None:
    """A phrase that says nothing about the question; None where there is none."""
    return _found(_BOILERPLATE, text)


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(unicodedata.normalize("NFKC", text).lower().replace("’", "'"))
    return None if match is None else match.group()

"""Personal data and secrets in texts, by patterns with check digits where there are any. Values are never repeated."""

from __future__ import annotations

import ipaddress
import re

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}")
_RESERVED = re.compile(r"(?:^|\.)example(?:\.(?:com|org|net))?$|\.(?:test|invalid|localhost|example)$", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.+-])(?<!\d[ .-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]\d{4}(?![\w-]|[ .]\d)"
)
_FICTION = re.compile(r"\b555\D?\d{4}\b")  # numbers kept for fiction
_CARD = re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])")
_KOREAN_ID = re.compile(r"(?<!\d)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])-[1-8]\d{6}(?!\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_SECRET = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,}|hf_[A-Za-z0-9]{30,}|"
    r"xox[baprs]-[A-Za-z0-9-]{10,})\b|-----BEGIN (?:RSA |EC |OPENSSH )?PRIVATE KEY-----"
)


def personal_data(text: str) -> list[str]:
    """The kinds that occur: email, phone, card, ssn, korean_id, iban, ip, secret; sorted."""
    found = set()
    if any(not _RESERVED.search(match.rpartition("@")[2]) for match in _EMAIL.findall(text)):
        found.add("email")
    if any(not _FICTION.search(match) for match in _PHONE.findall(text)):
        found.add("phone")
    if any(_luhn(match) for match in _CARD.findall(text)):
        found.add("card")
    if any(_iban(match.group()) for match in _IBAN.finditer(text)):
        found.add("iban")
    if any(_public(match) for match in _IP.findall(text)):
        found.add("ip")
    for name, pattern in (("ssn", _SSN), ("korean_id", _KOREAN_ID), ("secret", _SECRET)):
        if pattern.search(text):
            found.add(name)
    return sorted(found)


def _luhn(text: str) -> bool:
    """The check digit of payment cards; a run of one digit is no card."""
    digits = [int(char) for char in text if char.isdigit()]
    if len(set(digits)) == 1:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) if place % 2 else digit for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    """ISO 13616: the letters as numbers, the first four characters last, modulo 97 is 1."""
    compact = text.replace(" ", "")
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1


def _public(text: str) -> bool:
    try:
        return ipaddress.IPv4Address(text).is_global
    except ipaddress.AddressValueError:
        return False

"""Text in, the personal data found in it out: e-mail addresses, card numbers, Chinese mobile and identity numbers."""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple


class Kind(NamedTuple):
    """One kind of personal data: the check's name, what stands in its place, where it may be, and a proof."""

    check: str
    placeholder: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool]


def luhn(number: str) -> bool:
    """Whether the digits end with the check digit of payment cards (ISO/IEC 7812-1).

    >>> luhn("4111 1111 1111 1111"), luhn("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(character) for character in number if character.isdigit()][::-1]
    total = sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return 13 <= len(digits) <= 19 and total % 10 == 0


def identity_number(number: str) -> bool:
    """Whether an 18-character Chinese identity number has the right check character (GB 11643, ISO 7064 MOD 11-2).

    >>> identity_number("11010519491231002X")
    True
    """
    total = sum(int(digit) * (1 << (17 - place)) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


KINDS = (
    Kind(
        "email",
        "<email>",
        re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}", re.ASCII),
        lambda _: True,
    ),
    Kind("id_number", "<id>", re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{9}[\dXx](?!\d)", re.ASCII), identity_number),
    Kind("card_number", "<card>", re.compile(r"(?<![\d.])[3-6](?:[ -]?\d){12,18}(?!\d)", re.ASCII), luhn),
    Kind("mobile_number", "<mobile>", re.compile(r"(?<!\d)1[3-9]\d{9}(?!\d)", re.ASCII), lambda _: True),
)


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text with placeholders for what was found, and how often each check found something.

    >>> redact("write to ann@example.org")
    ('write to <email>', Counter({'email': 1}))
    """
    found: Counter[str] = Counter()
    for kind in KINDS:

        def place(match: re.Match[str], kind: Kind = kind) -> str:
            if not kind.holds(match.group()):
                return match.group()
            found[kind.check] += 1
            return kind.placeholder

        text = kind.pattern.sub(place, text)
    return text, found

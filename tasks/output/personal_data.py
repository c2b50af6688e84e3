"""Text in, the personal data found in it out: e-mail addresses, card numbers, Chinese mobile and identity numbers.

Full-width digits and signs, special spaces and dashes count as their ASCII forms.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One kind of personal data: the check's name, what stands in its place, where it may be, and a proof."""

    check: str
    placeholder: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool]


# One character for one: what is found in the folded text lies at the same place in the text itself.
_FOLDED = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {
    ord(character): ascii_character
    for ascii_character, characters in (
        (" ", "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000"),
        ("-", "\u2010\u2011\u2012\u2013\u2014\u2212"),
    )
    for character in characters
}


def luhn(number: str) -> bool:
    """Whether the digits end with the check digit of payment cards (ISO/IEC 7812-1).

    >>> luhn("4111 1111 1111 1111"), luhn("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(character) for character in number if character.isdigit()][::-1]
    total = sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return 13 <= len(digits) <= 19 and total % 10 == 0


def card_number(number: str) -> bool:
    """Whether digits may be a payment card: the check digit, and the lengths that two of the issuers have.

    Fifteen digits are American Express, or a telephone's IMEI; a leading 2 is Mastercard's range 2221 to 2720.

    >>> card_number("2223 0000 4840 0011"), card_number("490154203237518")
    (True, False)
    """
    digits = "".join(filter(str.isdigit, number))
    if digits[0] == "2":
        return len(digits) == 16 and 2221 <= int(digits[:4]) <= 2720 and luhn(digits)
    return (len(digits) != 15 or digits[:2] in ("34", "37")) and luhn(digits)


def identity_number(number: str) -> bool:
    """Whether an 18-character Chinese identity number has the right check character (GB 11643, ISO 7064 MOD 11-2).

    >>> identity_number("11010519491231002X"), identity_number("110105 19491231 002X")
    (True, True)
    """
    plain = "".join(filter(str.isalnum, number))
    total = sum(int(digit) * (1 << (17 - index)) for index, digit in enumerate(plain[:17]))
    return "10X98765432"[total % 11] == plain[17].upper()


def not_a_repository(address: str) -> bool:
    """Whether an address is one of a person: `git@github.com` names a repository's host.

    >>> not_a_repository("ann@example.org"), not_a_repository("git@github.com")
    (True, False)
    """
    return not address.startswith("git@")


_CHINA = r"(?:(?:\+|\(\+?|00)?86[ )-]{0,2})?"
KINDS = (
    Kind(
        "email",
        "<email>",
        # What a bracket follows is code: @app.route("/").
        re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z(])", re.ASCII),
        not_a_repository,
    ),
    Kind(
        "id_number",
        "<id>",
        re.compile(r"(?<!\d)[1-9]\d{5}([ -]?)(?:19|20)\d\d ?\d{4}\1\d{3}[\dXx](?!\d)", re.ASCII),
        identity_number,
    ),
    Kind(
        "card_number",
        "<card>",
        re.compile(r"(?<![\d.])(?:[2-6](?:[ -]?\d){12,18}|[2-6]\d{3}(?:\.\d{4}){3})(?!\d)", re.ASCII),
        card_number,
    ),
    Kind(
        "mobile_number",
        "<mobile>",
        # Divided numbers with more before or after, such as 6000-150-1200-2000, are arithmetic.
        re.compile(
            rf"(?<!\d){_CHINA}1[3-9]\d{{9}}(?!\d)|(?<![\d-]){_CHINA}1[3-9]\d([ -])\d{{4}}\1\d{{4}}(?!\d|-\d)", re.ASCII
        ),
        lambda _: True,
    ),
)


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text with placeholders for what was found, and how often each check found something.

    >>> redact("write to ann@example.org")
    ('write to <email>', Counter({'email': 1}))
    """
    counts: Counter[str] = Counter()
    folded = text if text.isascii() else text.translate(_FOLDED)
    for kind in KINDS:
        spans = [match.span() for match in kind.pattern.finditer(folded) if kind.holds(match.group())]
        for start, end in reversed(spans):
            text = text[:start] + kind.placeholder + text[end:]
            folded = folded[:start] + kind.placeholder + folded[end:]
        if spans:
            counts[kind.check] += len(spans)
    return text, counts


def hidden(value: Any) -> Any:
    """A text, or every text in lists and mappings, with placeholders for personal data: for what others see."""
    if isinstance(value, str):
        return redact(value)[0]
    if isinstance(value, dict):
        return {name: hidden(item) for name, item in value.items()}
    return [hidden(item) for item in value] if isinstance(value, list) else value

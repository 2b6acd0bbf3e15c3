"""Finding what a person may not want to send: addresses, numbers, paths and keys in a text.

Each kind is a pattern and, where the number carries one, a checksum: a card must satisfy Luhn, an
IBAN its remainder of 97, a Chinese identity number its last digit and its date of birth. That is
what tells them from order numbers, hashes and versions that look alike. Full-width digits and
letters, as Chinese input methods write them, count as the plain ones.

Names of people and postal addresses are not found: without a model there is no telling them from
other words, and the preview says so by showing the whole text.
"""

from __future__ import annotations

import bisect
import datetime
import ipaddress
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Full-width forms to plain ones, one character each, so that positions stay. "。" and "、" too, as
# they end a word.
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3002: ".", 0x3001: ","}
_SPACE = {0x3000: " ", 0xA0: " "}


@dataclass(frozen=True)
class Finding:
    """Characters ``start`` to ``end`` of a text are of this kind."""

    start: int
    end: int
    kind: str


def find_sensitive(text: str) -> list[Finding]:
    """Findings in order, none overlapping; of two that overlap the more certain kind stays."""
    narrow = text.translate({**_NARROW, **_SPACE})
    taken: list[tuple[int, int, str]] = []  # sorted, none overlapping
    for kind, detect in DETECTORS:
        for start, end in detect(narrow):
            place = bisect.bisect_left(taken, (start, end, kind))
            after_previous = place == 0 or taken[place - 1][1] <= start
            before_next = place == len(taken) or end <= taken[place][0]
            if after_previous and before_next:
                taken.insert(place, (start, end, kind))
    return [Finding(*one) for one in taken]


Spans = Iterator[tuple[int, int]]

# Keys and tokens -----------------------------------------------------------------------------

_KEY_SHAPES = re.compile(
    r"""
      -----BEGIN\ [A-Z0-9 ]{0,40}PRIVATE\ KEY-----.{1,20000}?-----END\ [A-Z0-9 ]{0,40}KEY-----
    | (?<![A-Za-z0-9_-])(?:
        sk-[A-Za-z0-9_-]{16,200}                       # OpenAI, Anthropic and their relatives
      | gh[pousr]_[A-Za-z0-9]{20,255} | github_pat_[A-Za-z0-9_]{20,255}
      | glpat-[A-Za-z0-9_-]{16,200}
      | xox[abeoprs]-[A-Za-z0-9-]{10,250}              # Slack
      | (?:AKIA|ASIA)[A-Z0-9]{16}                      # AWS
      | LTAI[A-Za-z0-9]{12,30} | AKID[A-Za-z0-9]{28,40} # Alibaba Cloud, Tencent Cloud
      | AIza[A-Za-z0-9_-]{35}                          # Google
      | hf_[A-Za-z0-9]{20,100} | npm_[A-Za-z0-9]{30,100} | pypi-[A-Za-z0-9_-]{40,250}
      | [rs]k_(?:live|test)_[A-Za-z0-9]{16,200}        # Stripe
      | eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{4,4000}\.[A-Za-z0-9_-]{10,2000}  # JWT
    )(?![A-Za-z0-9_-])
    """,
    re.VERBOSE | re.DOTALL,
)
# What follows a word for a secret: its value alone is replaced. Quantifiers are possessive, so
# that a call such as get_token2() is not cut into something that looks like a value.
_NAMED_SECRET = re.compile(
    r"""
    (?: (?:password|passwd|passphrase|secret|api[_\ -]?key|access[_\ -]?key|token)
        ["'`]?\ {0,3}(?:=>|[:=]|is\b)\ {0,3}
      | \bbearer\ {1,3}
      | (?:密码|口令|密钥|令牌|私钥)["'`]?\ ?(?:是|为|[:=])?\ ? )
    ["'`]?(?P<value>[A-Za-z0-9!@#$%^&*_+=.~/-]{6,200}+)(?!\()
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_IN_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,100}:(?P<value>[^\s/@]{1,200})@", re.ASCII
)
_TOKEN = re.compile(r"(?<![A-Za-z0-9_+.-])[A-Za-z0-9_+-]{24,512}={0,2}(?![A-Za-z0-9_+-])")
_UUID_OR_HEX = re.compile(
    r"(?:0x)?[0-9a-fA-F]+|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)
# A word of letters and digits looks random when its digits stand in several places and its classes
# (upper, lower, digit) change often. Of 3000 drawn at random, 9 % of 24 characters are missed, 3 %
# of 32 and 0.3 % of 48; of 3000 made of words as identifiers are, none is taken for random.
LEAST_DIGIT_RUNS = 2
LEAST_CHANGES = 0.35  # of class, a character
LEAST_ENTROPY = 3.7  # bits a character


def _keys(text: str) -> Spans:
    for match in _KEY_SHAPES.finditer(text):
        yield match.span()
    for match in _IN_ADDRESS.finditer(text):
        yield match.span("value")
    for match in _NAMED_SECRET.finditer(text):
        if _is_secret(match["value"].rstrip(".")):
            start = match.start("value")
            yield start, start + len(match["value"].rstrip("."))
    for match in _TOKEN.finditer(text):
        if _is_random(match.group()):
            yield match.span()


def _is_secret(value: str) -> bool:
    """Whether a word after "password" is its value and not the next word of a sentence."""
    kinds = sum(bool(re.search(p, value)) for p in ("[a-z]", "[A-Z]", "[0-9]", "[^A-Za-z0-9]"))
    return kinds >= 2 and bool(re.search(r"[0-9!@#$%^&*+=~]", value))


def _is_random(token: str) -> bool:
    """Whether a long word looks drawn at random. Hashes and UUIDs do, and are no secrets."""
    if _UUID_OR_HEX.fullmatch(token) or len(re.findall(r"\d+", token)) < LEAST_DIGIT_RUNS:
        return False
    letters = [c for c in token if c.isalnum()]
    if not (any(map(str.isupper, letters)) and any(map(str.islower, letters))):
        return False
    classes = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in letters]
    changes = sum(a != b for a, b in itertools.pairwise(classes))
    if changes < LEAST_CHANGES * len(letters):
        return False
    counts = Counter(letters).values()
    entropy = -sum(n / len(letters) * math.log2(n / len(letters)) for n in counts)
    return entropy >= LEAST_ENTROPY


# Mail, people's numbers ----------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+/-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-]|\.[A-Za-z0-9]|:\w)",
    re.ASCII,
)
_CHINESE_ID = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:18|19|20)\d{9}[0-9Xx](?![0-9A-Za-z])", re.ASCII
)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_PROVINCES = {
    *range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55),
    *range(61, 66), 71, 81, 82, 83,
}  # fmt: skip
_CARD = re.compile(
    r"(?<![\w.-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3}(?!\d))?"
    r"|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-])(?!\.\d)",
    re.ASCII,
)
_IBAN = re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Z0-9])")
# Characters of an IBAN by country; an unknown country's is not looked for.
_IBAN_LENGTHS = {
    match[1]: int(match[2])
    for match in re.finditer(
        r"([A-Z]{2})(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 "
        "DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 "
        "IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 "
        "MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 "
        "SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 ",
    )
}


def _emails(text: str) -> Spans:
    for match in _EMAIL.finditer(text):
        yield match.span()


def _chinese_ids(text: str) -> Spans:
    for match in _CHINESE_ID.finditer(text):
        if _is_chinese_id(match.group()):
            yield match.span()


def _is_chinese_id(number: str) -> bool:
    if int(number[:2]) not in _PROVINCES:
        return False
    try:
        datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(number, _ID_WEIGHTS, strict=False))
    return "10X98765432"[total % 11] == number[17].upper()


def _ibans(text: str) -> Spans:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match.group()[:2], 0)
        end = _end_of_characters(match.group(), length)
        if end and _is_iban(match.group()[:end].replace(" ", "")):
            yield match.start(), match.start() + end


def _end_of_characters(text: str, wanted: int) -> int:
    """Where the first ``wanted`` characters that are not spaces end; 0 when there are fewer."""
    for index, character in enumerate(text):
        wanted -= character != " "
        if wanted == 0:
            following = text[index + 1 : index + 2]
            return index + 1 if following in ("", " ") else 0
    return 0


def _is_iban(iban: str) -> bool:
    moved = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def _cards(text: str) -> Spans:
    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match.group())
        if _is_card_range(digits) and _luhn(digits):
            yield match.span()


def _is_card_range(digits: str) -> bool:
    """Whether a scheme issues such numbers: by their first digits and their length."""
    size, two, four = len(digits), int(digits[:2]), int(digits[:4])
    return (
        (digits[0] == "4" and size in (13, 16, 19))  # Visa
        or (size == 16 and (51 <= two <= 55 or 2221 <= four <= 2720))  # Mastercard
        or (size == 15 and two in (34, 37))  # American Express
        or (size == 16 and (four == 6011 or two == 65 or 3528 <= four <= 3589))  # Discover, JCB
        or (16 <= size <= 19 and two in (62, 81))  # UnionPay
        or (size == 14 and two in (36, 38, 39))  # Diners
    )


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


# Telephones ----------------------------------------------------------------------------------

_PHONE = re.compile(
    r"""
      (?<![\w.+-])(?<!\d[ ])(?:\+[1-9]\d{0,2}|00[1-9]\d{0,2}[ -])(?:[ .-]?\(?\d{1,5}\)?){2,6}(?!\w)
    | (?<![\w.,-])(?:\(?86\)?[ -]?)?1[3-9]\d(?P<s>[ -]?)\d{4}(?P=s)\d{4}(?![\w-])(?!\.\d)
    | (?<![\w.,-])(?:0\d{2,3}[- ]|\(0\d{2,3}\)[- ]?)\d{7,8}(?![\w-])   # Chinese landlines
    | (?<![\w.,-])(?:1[ .-])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d(?P<t>[ .-]))
      [2-9]\d\d(?(t)(?P=t)|[ .-])\d{4}(?![\w-])(?!\.\d)                # North America
    """,
    re.VERBOSE | re.ASCII,
)


def _phones(text: str) -> Spans:
    for match in _PHONE.finditer(text):
        digits = sum(map(str.isdigit, match.group()))
        if 10 <= digits <= 16:
            yield match.span()


# Networks and paths --------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-])(?!\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{3,39}(?:%[\w.-]{1,20})?(?![\w:])", re.ASCII)
_VERSION_BEFORE = re.compile(r"(?:\bv|version|版本号?|release)[ :]*$", re.IGNORECASE)
PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"),
        *("fc00::/7", "fe80::/10"),
    )
)
_HOME = re.compile(
    r"""
      (?<![\w.])(?:/home|/Users|/mnt/[a-z]/Users)/(?P<posix>[^/\s:*?"'`<>|\\,;()\[\]]{1,64})
    | (?<![A-Za-z])[A-Za-z]:[\\/]{1,2}(?:Users|Documents\ and\ Settings)[\\/]{1,2}
      (?P<windows>[^\\/:*?"'`<>|\r\n,;]{1,64}(?=[\\/])|[^\\/:*?"'`<>|\s,;]{1,64})
    """,
    re.VERBOSE | re.ASCII,
)
_NOBODY = frozenset({"shared", "public", "default", "all users", "user", "username", "name"})


def _private_addresses(text: str) -> Spans:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            if _is_private(match.group()) and not _VERSION_BEFORE.search(
                text[max(0, match.start() - 12) : match.start()]
            ):
                yield match.span()


def _is_private(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in PRIVATE if network.version == address.version)


def _user_names(text: str) -> Spans:
    """The name in the path of somebody's home, not the path: the rest tells what is asked."""
    for match in _HOME.finditer(text):
        group = "posix" if match["posix"] else "windows"
        name = match[group].rstrip(" .")
        if name and name.lower() not in _NOBODY:
            yield match.start(group), match.start(group) + len(name)


# The more certain kinds first: of two that overlap the first stays.
DETECTORS: tuple[tuple[str, Callable[[str], Spans]], ...] = (
    ("KEY", _keys),
    ("EMAIL", _emails),
    ("ID", _chinese_ids),
    ("IBAN", _ibans),
    ("CARD", _cards),
    ("PHONE", _phones),
    ("IP", _private_addresses),
    ("USER", _user_names),
)

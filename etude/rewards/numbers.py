r"""Texts that are numbers, exactly: LaTeX, fractions, thousands, units and percent → `Fraction`.

Exact rationals instead of floats: 0.1 + 0.2 is 0.3 here, and 12345678901234567890 is not ...891. What is not
certainly a number is None, and left to slower and cleverer judges.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 200
"""Longer texts are not read as numbers: no answer needs them, and `int` of a million digits takes long."""

MAX_EXPONENT = 300

SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS = {
    alias: unit
    for unit, aliases in {
        "%": "% percent", "$": "$ dollar dollars usd", "cent": "cent cents", "€": "€ euro euros",
        "km": "km kilometer kilometers kilometre kilometres", "m": "m meter meters metre metres",
        "cm": "cm centimeter centimeters centimetre centimetres", "mm": "mm millimeter millimeters",
        "in": "in inch inches", "ft": "ft foot feet", "mi": "mi mile miles", "yd": "yd yard yards",
        "kg": "kg kilogram kilograms", "g": "g gram grams", "mg": "mg milligram milligrams",
        "s": "s sec second seconds", "min": "min minute minutes", "h": "h hr hour hours", "d": "day days",
        "l": "l liter liters litre litres", "ml": "ml milliliter milliliters", "°": "° degree degrees",
    }.items()
    for alias in aliases.split()
}  # fmt: skip
"""Spelling → unit. Other words behind a number ("apples") count as no unit at all."""

NO_UNIT = frozenset(
    "or and to plus minus times over by point half halves squared cubed hundred dozen pi sqrt".split()
)
"""Words that change what a number in front of them is: it is then not read as a number."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"[-+]?{_DECIMAL}"
_FRACTION = (
    rf"\\frac\s*(?:{{\s*(?P<above>{_SIGNED})\s*}}\s*{{\s*(?P<below>{_SIGNED})\s*}}"
    r"|(?P<above1>[0-9])\s*(?P<below1>[0-9]))"
)
_QUANTITY = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<currency>[$€]?)\s*(?P<sign2>-?)\s*(?:"
    rf"(?P<mixed>[0-9]+)?\s*{_FRACTION}"
    r"|(?P<whole>[0-9]+)\s+(?P<over>[0-9]+)\s*/\s*(?P<under>[0-9]+)"
    rf"|(?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_SIGNED})"
    rf"|(?P<mantissa>{_DECIMAL})\s*(?:\*|x|×|\\times|\\cdot)\s*10\s*\^\s*{{?\s*(?P<power>[-+]?[0-9]+)\s*}}?"
    rf"|(?P<decimal>{_DECIMAL}(?:[eE][-+]?[0-9]+)?)"
    r")(?P<rest>[^0-9]*)"
)
_STRIPPED = (
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|textit|mbox|operatorname)\s*{([^{}]*)}"), r" \1 "),
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[,;:! ]|~|\\(?:quad|qquad)(?![A-Za-z])"), " "),
    (re.compile(r"\^\s*{?\s*\\circ\s*}?|\\degree(?![A-Za-z])"), " ° "),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\*\*(.+?)\*\*|`(.+?)`"), r"\1\2"),
    (re.compile(r"\s+"), " "),
)
_DOLLARS = re.compile(r"\$\$(.+)\$\$|\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)
_VARIABLE = re.compile(r"^\\?[A-Za-z](?:_{?[A-Za-z0-9]+}?|[A-Za-z_{}()']{0,19})\s*=\s*(?=\S)")


@dataclass(frozen=True)
class Quantity:
    """A number and its unit ("" for none; otherwise a value of UNITS)."""

    value: Fraction
    unit: str = ""


def plain(text: str) -> str:
    r"""A text without LaTeX's and Markdown's dressing, a leading `x =`, and a full stop at its end.

    >>> plain(r"$\dfrac{1}{2}\text{ cm}$."), plain(r"x = \left(1,\, 2\right)"), plain("**7**")
    ('\\frac{1}{2} cm', '(1, 2)', '7')
    """
    text = text.strip().removesuffix(".").strip()
    if match := _DOLLARS.fullmatch(text):
        text = next(part for part in match.groups() if part is not None)
    for pattern, replacement in _STRIPPED:
        text = pattern.sub(replacement, text)
    text = text.strip().removesuffix(".").strip()
    return _VARIABLE.sub("", text)


def quantity(text: str) -> Quantity | None:
    r"""The number that a text is, with its unit; None if it is not certainly one.

    >>> [str(quantity(text).value) for text in (r"\frac12", "1 1/2", "1,234.50", "-3 apples", r"2\cdot 10^3")]
    ['1/2', '3/2', '2469/2', '-3', '2000']
    >>> quantity("50%"), quantity("5 or 6"), quantity("5x"), quantity("1e999999999")
    (Quantity(value=Fraction(50, 1), unit='%'), None, None, None)
    """
    if len(text) > MAX_CHARACTERS:
        return None
    match = _QUANTITY.fullmatch(plain(text))
    if match is None:
        return None
    value = _value(match)
    unit = _unit(match["rest"], match["currency"])
    if value is None or unit is None:
        return None
    scale, name = unit
    sign = -1 if (match["sign"] == "-") != (match["sign2"] == "-") else 1
    return Quantity(sign * value * scale, name)


def number(text: str) -> Fraction | None:
    """The value of `quantity`."""
    found = quantity(text)
    return found.value if found else None


def canonical(text: str) -> str:
    r"""One spelling for equal answers, to count votes: numbers as fractions, words folded.

    >>> canonical("0.50"), canonical(r"$\frac{1}{2}$"), canonical(" The  Sun. "), canonical("(1,2)")
    ('1/2', '1/2', 'the sun', '(1,2)')
    """
    value = number(text)
    return str(value) if value is not None else folded(text)


def folded(text: str) -> str:
    """A text without dressing and case; without spaces too, unless it is words.

    >>> folded("X ^ 2 + 1"), folded("New  York"), folded("(1, 2)")
    ('x^2+1', 'new york', '(1,2)')
    """
    text = plain(text).casefold()
    return text if re.fullmatch(r"[^\W\d_ ]{2,}(?:[ '-][^\W\d_ ]+)*", text) else text.replace(" ", "")


def _value(match: re.Match[str]) -> Fraction | None:
    """The number without sign and unit."""
    parts = match.groupdict()
    try:
        if parts["decimal"]:
            return _decimal(parts["decimal"])
        if parts["mantissa"]:
            power = int(parts["power"])
            return _decimal(parts["mantissa"]) * Fraction(10) ** power if abs(power) <= MAX_EXPONENT else None
        if parts["whole"]:
            return int(parts["whole"]) + Fraction(int(parts["over"]), int(parts["under"]))
        if parts["top"]:
            return _decimal(parts["top"]) / _decimal(parts["bottom"])
        top, bottom = parts["above"] or parts["above1"], parts["below"] or parts["below1"]
        return int(parts["mixed"] or 0) + _decimal(top) / _decimal(bottom)
    except (ZeroDivisionError, OverflowError):
        return None


def _decimal(text: str) -> Fraction:
    """'1,234.5e3' as a fraction. OverflowError beyond any answer's size."""
    mantissa, _, exponent = text.replace(",", "").lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_EXPONENT:
        raise OverflowError(text)
    return Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0)


def _unit(rest: str, currency: str) -> tuple[int, str] | None:
    """(scale, unit) that the words behind a number give it; None if they make it something else."""
    scale, words = 1, rest.strip().strip(".").split()
    if words and words[0].lower() in SCALES:
        scale = SCALES[words.pop(0).lower()]
    if not words:
        return scale, currency
    if rest[:1].isalpha() and words[0].lower() not in UNITS:
        return None  # 5x: a product
    if len(words) > 4 or not all(_is_unit_word(word) for word in words):
        return None
    text = "".join(words).lower()
    if "/" in text:
        return scale, "/".join(UNITS.get(part, part) for part in text.split("/"))
    return scale, UNITS.get(text, currency) if len(words) == 1 else currency


def _is_unit_word(word: str) -> bool:
    """Whether a word may stand behind a number and leave it that number: cm, °, apples, km/h."""
    bare = word.strip("().,").lower()
    if bare in UNITS:
        return True
    parts = re.split("[/-]", bare)
    return bare not in NO_UNIT and all(part in UNITS or (len(part) > 2 and part.isalpha()) for part in parts)

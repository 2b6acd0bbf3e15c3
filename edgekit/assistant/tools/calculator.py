"""Arithmetic on a syntax tree: our own small evaluator, so that no text of a model is ever run.

Python's parser reads the expression, and only the nodes listed here are followed: numbers, the
operators, a fixed set of names and functions. Numbers are fractions as long as they can be (so
0.1 + 0.2 is 0.3) and floats after a function such as ``sqrt``. Every size is bounded before the
work is done, so that ``9**9**9`` is refused at once.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from edgekit.assistant.tools.definitions import ToolInfo, ToolResult

Number = Fraction | float

LONGEST = 500  # characters of an expression
MOST_BITS = 4096  # of a numerator or a denominator
LARGEST_FACTORIAL = 300
DIGITS = 15  # significant, of a result that is not exact

CALCULATOR = ToolInfo(
    name="calculator",
    server="",
    tool="calculator",
    description=(
        "Calculate an arithmetic expression exactly. Operators: + - * / // % ** and parentheses. "
        "Functions: sqrt, abs, round, floor, ceil, exp, log (natural), log10, log2, sin, cos, tan, "
        "asin, acos, atan (radians), degrees, radians, factorial, gcd, lcm, hypot, min, max. "
        "Constants: pi, e, tau."
    ),
    schema={
        "type": "object",
        "properties": {
            "expression": {"type": "string", "description": "such as (3 + 4.5) * 2 ** 10"}
        },
        "required": ["expression"],
        "additionalProperties": False,
    },
)

# Written by people and models, read by Python.
_SPELLINGS = str.maketrans(
    {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "（": "(", "）": ")", "，": ",", "＋": "+"}
    | {"－": "-", "＊": "*", "／": "/", "＝": "=", "．": ".", "π": " pi ", "^": "**"}
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)
_EXPONENT = re.compile(r"[eE]([+-]?\d+)$")

_CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}


class _RefusedError(Exception):
    """Why an expression has no value, in words for the model and the person."""


def calculate(expression: str) -> ToolResult:
    """The value of an expression as text, or why it has none."""
    try:
        return ToolResult(_shown(_value(_parsed(expression))))
    except _RefusedError as error:
        return ToolResult(f"not calculated: {error}", is_error=True)
    except ZeroDivisionError:
        return ToolResult("not calculated: division by zero", is_error=True)
    except (OverflowError, ValueError) as error:  # of math: outside a function's domain
        return ToolResult(f"not calculated: {error}", is_error=True)


def _parsed(expression: str) -> ast.expr:
    if len(expression) > LONGEST:
        raise _RefusedError(f"the expression is longer than {LONGEST} characters")
    text = expression.translate(_SPELLINGS).strip().rstrip("=").strip()
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _RefusedError("this is not an arithmetic expression") from error
    if isinstance(tree, ast.Tuple):
        raise _RefusedError("write numbers without commas, such as 1234.5")
    for node in ast.walk(tree):  # the text of a number is exact, its float is not
        if isinstance(node, ast.Constant):
            node.kind = ast.get_source_segment(text, node)
    return tree


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant():
            return _number(node)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _bounded(_operation(op)(_value(left), _value(right)))
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_apply(name, [_value(arg) for arg in args]))
    raise _RefusedError(f"{ast.unparse(node)[:60]!r} is not part of arithmetic")


def _number(node: ast.Constant) -> Number:
    value, text = node.value, (node.kind or "").replace("_", "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _RefusedError(f"{text[:60]!r} is not a number")
    if isinstance(value, int):
        return _bounded(Fraction(value))
    exponent = _EXPONENT.search(text)
    if exponent and abs(int(exponent[1])) > 308:
        raise _RefusedError(f"{text[:60]} is too large or too small")
    return _bounded(Fraction(text))


def _operation(op: ast.operator) -> Callable[[Any, Any], Number]:
    found = _OPERATORS.get(type(op))
    if found is None:
        raise _RefusedError("only + - * / // % and ** are operators here")
    return found


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent.numerator) > MOST_BITS and abs(base) not in (0, 1):
            raise _RefusedError("the power is too large")
        return Fraction(base ** int(exponent))
    result = float(base) ** float(exponent)
    if isinstance(result, complex):
        raise _RefusedError("the root of a negative number is not real")
    return float(result)


def _divide(a: Number, b: Number) -> Number:
    return a / b


def _floor_divide(a: Number, b: Number) -> Number:
    quotient = a // b
    return Fraction(quotient) if isinstance(quotient, int) else quotient


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: _floor_divide,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _whole(value: Number, function: str) -> int:
    if value != int(value):
        raise _RefusedError(f"{function} takes whole numbers")
    return int(value)


def _factorial(value: Number) -> Number:
    number = _whole(value, "factorial")
    if not 0 <= number <= LARGEST_FACTORIAL:
        raise _RefusedError(f"factorial takes 0 to {LARGEST_FACTORIAL}")
    return Fraction(math.factorial(number))


def _round(value: Number, places: Number = Fraction(0)) -> Number:
    digits = _whole(places, "round")
    if abs(digits) > 100:
        raise _RefusedError("round takes at most 100 places")
    return Fraction(round(Fraction(value), digits))


def _sqrt(value: Number) -> Number:
    if isinstance(value, Fraction) and value >= 0:
        root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
        if root * root == value:
            return root
    return math.sqrt(value)


def _log(value: Number, base: Number = math.e) -> Number:
    return math.log(value) if base == math.e else math.log(value, base)


# name: (fewest arguments, most arguments, function)
_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "sqrt": (1, 1, _sqrt),
    "abs": (1, 1, abs),
    "round": (1, 2, _round),
    "floor": (1, 1, math.floor),
    "ceil": (1, 1, math.ceil),
    "exp": (1, 1, math.exp),
    "log": (1, 2, _log),
    "ln": (1, 1, math.log),
    "log10": (1, 1, math.log10),
    "log2": (1, 1, math.log2),
    "sin": (1, 1, math.sin),
    "cos": (1, 1, math.cos),
    "tan": (1, 1, math.tan),
    "asin": (1, 1, math.asin),
    "acos": (1, 1, math.acos),
    "atan": (1, 1, math.atan),
    "degrees": (1, 1, math.degrees),
    "radians": (1, 1, math.radians),
    "factorial": (1, 1, _factorial),
    "gcd": (1, 20, lambda *v: math.gcd(*(_whole(x, "gcd") for x in v))),
    "lcm": (1, 20, lambda *v: math.lcm(*(_whole(x, "lcm") for x in v))),
    "hypot": (1, 20, math.hypot),
    "min": (1, 100, lambda *v: min(v)),
    "max": (1, 100, lambda *v: max(v)),
}


def _apply(name: str, values: list[Number]) -> Number:
    fewest, most, function = _FUNCTIONS[name]
    if not fewest <= len(values) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise _RefusedError(f"{name} takes {wanted} argument{'s' * (most > 1)}")
    result = function(*values)
    return Fraction(result) if isinstance(result, int) else result


def _bounded(value: Number) -> Number:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _RefusedError("the result is too large")
    elif max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise _RefusedError("the result has too many digits")
    return value


def _shown(value: Number) -> str:
    """Whole numbers and decimals that end are exact; others have 15 significant digits."""
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if value.denominator == 1:
        return str(value.numerator)
    places = _decimal_places(value.denominator)
    if places is not None and places <= 40:
        scaled = abs(value.numerator) * 10**places // value.denominator
        text = str(scaled).rjust(places + 1, "0")
        return f"{'-' if value < 0 else ''}{text[:-places]}.{text[-places:]}"
    about = f"{float(value):.{DIGITS}g}"
    small = max(abs(value.numerator), value.denominator) < 10**6
    return f"{about} (exactly {value.numerator}/{value.denominator})" if small else about


def _decimal_places(denominator: int) -> int | None:
    """Digits after the point of a decimal that ends; ``None`` when it does not end."""
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None

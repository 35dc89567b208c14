"""Arithmetic and units. The expression is parsed, never evaluated as Python."""

import ast
import math
import operator

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_NAMES = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS = {
    **{
        name: getattr(math, name)
        for name in ("sqrt", "sin", "cos", "tan", "exp", "log", "log10", "log2", "floor", "ceil")
    },
    **{"abs": abs, "round": round, "min": min, "max": max},
}
_MOST_DIGITS = 4000

# One unit of each in the base unit of its kind: metre, kilogram, second, litre, byte, joule, metre per second.
_UNITS = {
    "length": {"m": 1, "km": 1000, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048, "yd": 0.9144, "mi": 1609.344},
    "mass": {"kg": 1, "g": 0.001, "mg": 1e-6, "t": 1000, "lb": 0.45359237, "oz": 0.028349523125},
    "time": {"s": 1, "ms": 0.001, "min": 60, "h": 3600, "d": 86400, "week": 604800},
    "volume": {"l": 1, "ml": 0.001, "m3": 1000, "gal": 3.785411784, "cup": 0.2365882365, "floz": 0.0295735295625},
    "data": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "energy": {"J": 1, "kJ": 1000, "kWh": 3.6e6, "cal": 4.184, "kcal": 4184},
    "speed": {"m/s": 1, "km/h": 1 / 3.6, "mph": 0.44704, "kn": 1852 / 3600},
}
_TEMPERATURES = {"C": (1.0, 273.15), "K": (1.0, 0.0), "F": (5 / 9, 459.67 * 5 / 9)}  # kelvin = factor * x + offset


def calculate(expression: str) -> float | int:
    """Compute an arithmetic expression.

    Args:
        expression: for example "(3 + 4) * 2", "2 ** 0.5" or "sqrt(2) * pi"; + - * / // % ** and functions.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"not an arithmetic expression: {expression}") from error
    return _value(tree.body)


def convert_unit(value: float, source: str, target: str) -> float:
    """Convert a quantity from one unit to another.

    Args:
        value: how many of the source unit.
        source: the unit it is in, such as km, lb, kWh, C.
        target: the unit wanted, of the same kind.
    """
    if source in _TEMPERATURES and target in _TEMPERATURES:
        (factor, offset), (factor_out, offset_out) = _TEMPERATURES[source], _TEMPERATURES[target]
        return round((value * factor + offset - offset_out) / factor_out, 9)
    for units in _UNITS.values():
        if source in units and target in units:
            return value * units[source] / units[target]
    known = ", ".join([*_TEMPERATURES, *(name for units in _UNITS.values() for name in units)])
    raise ValueError(f"cannot convert {source} to {target}; units: {known}")


def _value(node: ast.expr) -> float | int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) * math.log10(max(abs(left), 2)) > _MOST_DIGITS:
            raise ValueError(f"{left} ** {right} has more than {_MOST_DIGITS:,} digits")
        result = _OPERATORS[type(node.op)](left, right)
        if isinstance(result, complex):
            raise ValueError("the result is not a real number")
        return result
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and not node.keywords
    ):
        return _FUNCTIONS[node.func.id](*[_value(argument) for argument in node.args])
    raise ValueError(f"not allowed in an expression: {ast.unparse(node)}")

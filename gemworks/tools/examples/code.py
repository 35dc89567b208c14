"""Runs Python that a model wrote. Only for the sandbox: what the code may do is what the policy gives."""

import ast
import contextlib
import io
import traceback

_MOST_CHARS = 20_000


def run_python(code: str) -> dict[str, str]:
    """Run Python code and tell what it printed and the value of its last expression. Nothing is kept between calls.

    Args:
        code: the program; the standard library can be imported, there is no network.
    """
    printed = io.StringIO()
    told = {"printed": "", "value": "", "error": ""}
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            told["value"] = _run(code)
        except BaseException as error:
            lines = traceback.format_exception(error)
            told["error"] = "".join(line for line in lines if "in _run" not in line)[-_MOST_CHARS:]
    told["printed"] = printed.getvalue()[:_MOST_CHARS]
    return {name: text for name, text in told.items() if text}


def _run(code: str) -> str:
    tree = ast.parse(code, "<code>")
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    space = {"__name__": "__main__"}
    exec(compile(tree, "<code>", "exec"), space)
    if not isinstance(last, ast.Expr):
        return ""
    value = eval(compile(ast.Expression(last.value), "<code>", "eval"), space)
    return "" if value is None else repr(value)[:_MOST_CHARS]

"""gemworks guard: judge images by safety policies. Its exit code is the answer, so that scripts can ask.

0   every image was judged, none is flagged
1   every image was judged, at least one is flagged
2   some image could not be judged, or the command itself was wrong: take none of it for safe
"""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemworks.cli import console
from gemworks.errors import RequestError
from gemworks.safety import DEFAULT_THRESHOLD, Policy, Verdict, checked_threshold, policies_of

if TYPE_CHECKING:
    from gemworks.llm.guard import Guard

app = typer.Typer(help="Judge images by safety policies, with ShieldGemma 2.")

_FLAGGED, _FAILED = 1, 2
_WIDEST_NAME = 48


@app.callback()
def _group() -> None:
    pass


def image(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Images, as many as you like.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="P", help='dangerous, sexual, violence, or your own as "name=text"; repeatable.'),
    ] = None,
    threshold: Annotated[
        float, typer.Option(metavar="T", help="Flag from this probability on, above 0 and at most 1.")
    ] = DEFAULT_THRESHOLD,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Who judges.")] = "shieldgemma-2-4b-it",
    quant: Annotated[str | None, typer.Option(metavar="FORMAT", help="Quantize: int4-b32, int8 ...")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of lines.")] = False,
) -> None:
    """Judge images: exit code 0 where none is flagged, 1 where one is, 2 where one could not be judged."""
    from gemworks.weights import hub

    policies = policies_of([_policy(one) for one in policy] if policy else None)
    limit = checked_threshold(threshold)
    hub.resolve(model)
    found: list[dict[str, Any]] = []
    width = min(_WIDEST_NAME, max(map(len, files)))
    for file, verdict in _verdicts(files, model, policies, limit, quant=quant):
        if isinstance(verdict, RequestError):
            text = " ".join(str(verdict).split("\n"))
            console.error(text)
            found.append({"image": file, "error": text})
            continue
        found.append(verdict.as_dict())
        if not json:
            console.write(_line(verdict, width) + "\n")
    failed = sum("error" in one for one in found)
    flagged = sum(one.get("flagged", False) for one in found)
    if json:
        console.emit_json({"model": model, "policies": {one.name: one.text for one in policies}, "images": found})
    elif len(files) > 1:
        console.note(f"{len(files)} images: {flagged} flagged, {failed} could not be judged.")
    raise typer.Exit(_FAILED if failed else _FLAGGED if flagged else 0)


app.command("image", help=image.__doc__)(image)


def _verdicts(
    files: Sequence[str], model: str, policies: Sequence[Policy], threshold: float, *, quant: str | None
) -> Iterator[tuple[str, Verdict | RequestError]]:
    """Judge files in turn; the model is loaded when the first one that exists is reached."""
    from gemworks.media import decode_image

    guard: Guard | None = None
    try:
        for number, file in enumerate(files, 1):
            try:
                if not os.path.isfile(file):
                    decode_image(file)  # raises what is wrong with it
                guard = guard or _load(model, quant)
                with console.waiting(f"{number} of {len(files)}  {file}"):
                    verdict = guard.image(file, policies, threshold=threshold)
            except RequestError as error:
                verdict = error
            yield file, verdict
    finally:
        if guard is not None:
            guard.close()


def _load(model: str, quant: str | None) -> "Guard":
    from gemworks import Guard

    with console.loading(f"loading {model}") as progress:
        packing = progress.named(f"packing {model}") if progress else None
        return Guard(model, quant=quant, progress=progress, packing=packing)


def _policy(told: str) -> str | Policy:
    name, equals, text = told.partition("=")
    return Policy(name.strip(), text) if equals else name


def _line(verdict: Verdict, width: int) -> str:
    name = verdict.image if len(verdict.image) <= width else "..." + verdict.image[3 - width :]
    marks = {True: "!", False: " "}
    told = "  ".join(
        f"{policy} {probability:.3f}{marks[policy in verdict.violated]}"
        for policy, probability in verdict.probabilities.items()
    )
    return f"{name.ljust(width)}   {'FLAGGED' if verdict.flagged else 'ok     '}   {told}".rstrip()

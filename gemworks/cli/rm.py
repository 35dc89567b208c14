"""gemworks rm: remove pulled and created models."""

from typing import Annotated

import typer

from gemworks.cli import console
from gemworks.errors import ConfigError


def rm(
    models: Annotated[list[str] | None, typer.Argument(help="Names as `gemworks list` shows them.")] = None,
    packed: Annotated[bool, typer.Option("--packed", help="Only what was packed of them, or of all models.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of sentences.")] = False,
) -> None:
    """Remove models from this machine, and what was packed of them. Asks first in a terminal."""
    from gemworks.weights import hub, packed_store, store

    if packed:
        _remove_packed(models, json=json)
        return
    if not models:
        raise ConfigError("name the models to remove, as `gemworks list` shows them.")
    # All names are looked up before anything goes, so that a typing mistake in the second does not cost the first.
    targets = {name: _target(name) for name in models}
    going = {name.removesuffix(":latest") for name, repository in targets.items() if repository is None}
    for name, repository in targets.items():
        dependents = [made for made in hub.dependents(repository) if made not in going] if repository else []
        if dependents:
            console.warn(f"{', '.join(dependents)} {'is' if len(dependents) == 1 else 'are'} made from {name}.")
    if not yes and console.can_ask() and not console.confirm(f"Remove {', '.join(targets)}?", default=False):
        console.note("Nothing was removed.")
        raise typer.Exit(1)
    freed = 0
    for name, repository in targets.items():
        if repository is None:
            store.remove_created(name)
        else:
            going_too = packed_store.packed_of(store.pulled_path(repository))
            freed += store.remove_pulled(repository) + packed_store.remove(going_too)
        if not json:
            console.line(f"Removed {name}.")
    if json:
        console.emit_json({"removed": list(targets), "freed_bytes": freed})


def _remove_packed(models: list[str] | None, *, json: bool) -> None:
    """Remove packed files of `models`, or all. Nobody is asked: they are built again when they are needed."""
    from gemworks.weights import hub, packed_store

    if models:
        found = [entry for name in models for entry in packed_store.packed_of(hub.resolve(name).path)]
    else:
        found = packed_store.list_packed()
    freed = packed_store.remove(found)
    if json:
        console.emit_json({"removed": [str(entry.path) for entry in found], "freed_bytes": freed})
    elif found:
        console.line(f"Removed {len(found)} packed file{'s' if len(found) > 1 else ''}, {console.size(freed)}.")
    else:
        console.line("Nothing is packed.")


def _target(name: str) -> str | None:
    """The repository that `name` means, or None for a created model. Raises ConfigError if nothing of it is here."""
    from gemworks.weights import hub, store

    if name == "tiny":
        raise ConfigError("tiny is part of Gemworks and cannot be removed.")
    if store.created_exists(name):
        return None
    repository = hub.repository_of(name)
    if repository and (store.pulled_path(repository.id).is_dir() or store.has_partial(repository.id)):
        return repository.id
    raise ConfigError(f'there is no model "{name}" on this machine.{hub.suggestion(name)}\nSee: gemworks list')

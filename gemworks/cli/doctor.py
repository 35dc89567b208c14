"""gemworks doctor: what this machine is, which backends serve which op, and why."""

import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

import gemworks
from gemworks import env, machine
from gemworks.cli import console


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of a table.")] = False,
) -> None:
    """Show the machine, the devices jax sees, each op's backend and why, how tools can be shut in, and the folders."""
    facts = examine()
    if json:
        console.emit_json(facts)
    else:
        console.pairs(_rows(facts))


def examine() -> dict[str, Any]:
    """Return everything `doctor --json` prints. Starts jax."""
    import jax

    from gemworks.ops import native, select
    from gemworks.tools import doctor_rows

    processor, memory = machine.processor(), machine.memory()
    library = native.native_library()
    return {
        "gemworks": gemworks.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": {
            "name": processor.name,
            "isa": sorted(library.features) if library else list(processor.isa),
            "cores": processor.cores,
            "usable_cores": processor.usable_cores,
            "core_quota": processor.quota,
        },
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "jax": {
            "version": jax.__version__,
            "jaxlib": version("jaxlib"),
            "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        },
        "native_library": {
            "path": str(library.path) if library else None,
            "compiler": library.compiler if library else None,
            "why_missing": native.why_missing(),
        },
        "ops": [{"op": row.op, "backend": row.backend, "reason": row.reason} for row in select.explain()],
        "sandbox": dict(doctor_rows()),
        "folders": {"home": _folder(env.home()), "cache": _folder(env.cache())},
        "hub": {"endpoint": env.hub_endpoint(), "token_is_set": env.hub_token() is not None},
    }


def _folder(path: Path) -> dict[str, Any]:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    return {
        "path": str(path),
        "exists": path.is_dir(),
        "size_bytes": sum(file.stat().st_size for file in files),
        "disk_free_bytes": shutil.disk_usage(place).free,
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    processor, memory, native = facts["processor"], facts["memory"], facts["native_library"]
    cores = f"{processor['usable_cores']} of {processor['cores']} cores"
    if processor["core_quota"] is not None:
        cores += f", of which the container allows {processor['core_quota']:g}"
    kernels = (
        f"built ({native['path']}, {native['compiler']})" if native["path"] else f"not built: {native['why_missing']}"
    )
    token = "set" if facts["hub"]["token_is_set"] else "not set (needed for gated models: export HF_TOKEN=hf_...)"
    return [
        ("gemworks", f"{facts['gemworks']}, Python {facts['python']} ({sys.executable})"),
        ("system", facts["system"]),
        ("processor", f"{processor['name']}\n{cores}\n{' '.join(processor['isa'])}"),
        ("memory", f"{console.size(memory['total_bytes'])}, {console.size(memory['available_bytes'])} free"),
        ("jax", f"{facts['jax']['version']} (jaxlib {facts['jax']['jaxlib']})"),
        ("devices", "\n".join(facts["jax"]["devices"])),
        ("C++ library", kernels),
        ("ops", "\n".join(_by_backend(facts["ops"]))),
        ("sandbox of tools", "\n".join(f"{name}: {text}" for name, text in facts["sandbox"].items())),
        ("models", _folder_row(facts["folders"]["home"])),
        ("cache", _folder_row(facts["folders"]["cache"])),
        ("hub", f"{facts['hub']['endpoint'] or 'https://huggingface.co'}, HF_TOKEN {token}"),
    ]


def _by_backend(ops: list[dict[str, str]]) -> list[str]:
    """Ops that are served alike, on one line: "xla: rms_norm, linear (why)"."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in ops:
        groups.setdefault((row["backend"], row["reason"]), []).append(row["op"])
    return [f"{backend}: {', '.join(names)} ({reason})" for (backend, reason), names in groups.items()]


def _folder_row(folder: dict[str, Any]) -> str:
    held = console.size(folder["size_bytes"]) if folder["exists"] else "not there yet"
    return f"{folder['path']} ({held}; {console.size(folder['disk_free_bytes'])} free on its disk)"

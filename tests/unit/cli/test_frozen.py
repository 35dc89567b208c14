"""The command line is a promise: this table changes only on purpose, together with CHANGELOG.md."""

import typer

from gemworks.cli.main import app

COMMANDS = {
    "run": {
        "arguments": ["model", "prompt..."],
        "flags": {
            "--system", "--image", "--temperature", "--top-k", "--top-p", "--min-p", "--seed", "--max-tokens", "--stop",
            "--repetition-penalty", "--presence-penalty", "--frequency-penalty", "--raw", "--context", "--dtype",
            "--quant", "--embed", "--kv", "--adapter", "--verbose", "--json", "--pan-and-scan", "--video",
            "--max-frames", "--sampling", "--schema", "--tools", "--rules", "--yes", "--readable", "--rounds",
            "--audit",
        },
    },
    "serve": {
        "arguments": ["models..."],
        "flags": {
            "--config", "--host", "--port", "--keys", "--context", "--quant", "--kv", "--max-sequences", "--max-loaded",
            "--keep-alive", "--certificate", "--private-key", "--dry-run",
        },
    },
    "key add": {
        "arguments": ["name"],
        "flags": {
            "--keys", "--requests-per-minute", "--tokens-per-minute", "--concurrency", "--priority", "--admin",
            "--json",
        },
    },
    "key list": {"arguments": [], "flags": {"--keys", "--json"}},
    "key revoke": {"arguments": ["name"], "flags": {"--keys"}},
    "usage": {"arguments": [], "flags": {"--by", "--key", "--since", "--file", "--json"}},
    "ps": {"arguments": [], "flags": {"--json"}},
    "stop": {"arguments": ["models..."], "flags": {"--json"}},
    "pull": {"arguments": ["model"], "flags": {"--endpoint", "--json"}},
    "list": {"arguments": [], "flags": {"--json"}},
    "show": {"arguments": ["model"], "flags": {"--modelfile", "--json"}},
    "rm": {"arguments": ["models..."], "flags": {"--packed", "--yes", "-y", "--json"}},
    "create": {"arguments": ["name"], "flags": {"--file", "-f", "--json"}},
    "convert": {"arguments": ["source", "out"], "flags": {"--outtype", "--dtype", "--pure", "--force", "--json"}},
    "quantize": {
        "arguments": ["model"],
        "flags": {
            "--format", "--embed", "--out", "-o", "--method", "--calibration", "--text", "--set", "--plan", "--force",
            "--json",
        },
    },
    "train": {
        "arguments": ["recipe", "settings..."],
        "flags": {
            "--out", "--tokenizer", "--dry-run", "--accept-changes", "--coordinator", "--processes", "--process",
            "--watched",
        },
    },
    "eval": {
        "arguments": ["words..."],
        "flags": {
            "--tasks", "--out", "--limit", "--execute", "--report", "--context", "--dtype", "--quant", "--adapter",
            "--json",
        },
    },
    "tune": {
        "arguments": ["model", "data..."],
        "flags": {
            "--method", "--out", "-o", "--epochs", "--steps", "--rate", "--batch", "--length", "--rank", "--alpha",
            "--targets", "--rslora", "--soft-tokens", "--beta", "--validation", "--patience", "--samples", "--bad",
            "--long", "--tool-style", "--seed", "--recipe", "--set", "--dry-run",
        },
    },
    "plan": {
        "arguments": ["model"],
        "flags": {
            "--context", "--format", "--embed", "--sequences", "--cache", "--kv", "--images", "--pan-and-scan",
            "--json",
        },
    },
    "doctor": {"arguments": [], "flags": {"--json"}},
    "guard image": {"arguments": ["files..."], "flags": {"--policy", "--threshold", "--model", "--quant", "--json"}},
    "data filter": {
        "arguments": ["sources..."],
        "flags": {
            "--out", "-o", "--rules", "--languages", "--language-field", "--personal", "--evaluation", "--unsafe-terms",
            "--duplicates", "--no-duplicates", "--reweigh", "--reference", "--compress", "--processes",
            "--stop-on-broken", "--json",
        },
    },
    "data pack": {
        "arguments": ["sources..."],
        "flags": {
            "--out", "-o", "--tokenizer", "--length", "--by", "--seed", "--reweigh", "--processes", "--stop-on-broken",
            "--json",
        },
    },
    "data mix": {
        "arguments": ["stores..."],
        "flags": {
            "--out", "-o", "--weight", "--unimax", "--max-epochs", "--budget", "--length", "--batch", "--seed",
            "--json",
        },
    },
    "data report": {"arguments": ["folder"], "flags": {"--open", "--json"}},
    "data inspect": {
        "arguments": ["data"],
        "flags": {"--step", "--batch", "--seed", "--length", "--tokenizer", "--check", "--line", "--count", "--json"},
    },
    "data vocabulary": {
        "arguments": ["sources..."],
        "flags": {"--out", "-o", "--size", "--characters", "--stop-on-broken", "--json"},
    },
    "bench cpu": {
        "arguments": [],
        "flags": {
            "--models", "--rivals", "--what", "--repeats", "--threads", "--dir", "--tokenizer", "--openvino-python",
            "--twin", "--no-twin", "--plot", "--json",
        },
    },
    "bench engine": {
        "arguments": [],
        "flags": {
            "--model", "--scenario", "--rate", "--seconds", "--prompt", "--answer", "--shared-prefix", "--mix",
            "--keys", "--sequences", "--repeats", "--format", "--kv", "--seed", "--rivals", "--threads", "--dir",
            "--plot", "--json",
        },
    },
    "bench vision": {
        "arguments": [],
        "flags": {"--systems", "--shape", "--repeats", "--threads", "--dir", "--json"},
    },
    "bench make-random": {
        "arguments": ["size"],
        "flags": {"--out", "-o", "--tokenizer", "--gguf", "--seed", "--force", "--json"},
    },
}  # fmt: skip


def commands(group, prefix=""):
    """Name -> command, those of groups as "group command"."""
    found = {}
    for name, command in group.commands.items():
        is_group = hasattr(command, "commands")
        found |= commands(command, f"{prefix}{name} ") if is_group else {prefix + name: command}
    return found


def test_commands_and_flags_are_these_and_no_others():
    found = {}
    for name, command in commands(typer.main.get_command(app)).items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        found[name] = {
            "arguments": [p.name + ("..." if p.nargs == -1 else "") for p in arguments],
            "flags": {flag for p in options for flag in (*p.opts, *p.secondary_opts)},
        }
    assert found == COMMANDS


def test_the_top_level_has_only_the_version():
    flags = {flag for parameter in typer.main.get_command(app).params for flag in parameter.opts}
    assert flags == {"--version"}


def test_every_flag_and_argument_has_a_help_text():
    found = commands(typer.main.get_command(app))
    missing = [
        f"{name} {parameter.name}"
        for name, command in found.items()
        for parameter in command.params
        if not parameter.help
    ]
    assert missing == []
    assert [name for name, command in found.items() if not command.help] == []

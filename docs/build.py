"""Writes what the code knows into the docs (settings, commands, metrics, the API), and the client's made parts.

`make docs`; `--check` only compares.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import api_reference
import client_code
import typer
from pydantic_settings import BaseSettings

from featurewatch.service.alerts.conditions import KINDS
from featurewatch.service.alerts.parameters import parameters
from featurewatch.service.cli import app as cli
from featurewatch.service.config import ClientSettings, Settings
from featurewatch.service.health.metrics import METRICS
from featurewatch.service.verdicts.figures import FIGURES
from featurewatch.service.verdicts.statuses import Status

DOCS = Path(__file__).parent


def settings_table(settings: type[BaseSettings]) -> str:
    """A Markdown table of the settings of a class."""
    lines = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        default = field.get_default()
        shown = getattr(default, "get_secret_value", lambda d=default: d)()
        text = f"`{shown}`" if str(shown) else "empty"
        lines.append(f"| `FEATUREWATCH_{name.upper()}` | {text} | {field.description} |")
    return "\n".join(lines)


def metrics_table() -> str:
    """A Markdown table of what `/metrics` has."""
    lines = ["| metric | labels | what it is |", "|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {labels} | {metric.text} |")
    return "\n".join(lines)


def statuses_table() -> str:
    """A Markdown table of the statuses and their signs."""
    return "\n".join(
        [f"| {' | '.join(Status)} |", "|---" * len(Status) + "|", f"| {' | '.join(one.row.sign for one in Status)} |"]
    )


def figures_table() -> str:
    """A Markdown table of the figures of a verdict."""
    lines = ["| figure | unit | description |", "|---|---|---|"]
    for figure in FIGURES:
        name = f"`{figure.name}`" + (f", `{figure.name}_ci`" if figure.ends else "")
        lines.append(f"| {name} | {'' if figure.unit == '1' else figure.unit} | {figure.about} |")
    return "\n".join(lines)


def alert_rules_table() -> str:
    """A Markdown table of the kinds of alert rules."""
    lines = ["| kind | parameters | raised when | resolved when |", "|---|---|---|---|"]
    for kind, cls in KINDS.items():
        names = ", ".join(f"`{parameter.name}`" for parameter in parameters(cls))
        lines.append(f"| `{kind}` | {names} | {cls.when()} | {cls.resolved_when} |")
    return "\n".join(lines)


def between(text: str, name: str, part: str) -> str:
    """A page with the part between its markers `<!-- name -->` and `<!-- /name -->` replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{part}\n{end}{after}"


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All commands below a group, with their full names."""
    for sub in sorted(group.commands):
        command = group.commands[sub]
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {sub}")
        else:
            yield f"{name} {sub}", command


def cli_page() -> str:
    """The page of all commands, made from their help."""
    parts = [
        "# Commands",
        "",
        "Written by `make docs` from `featurewatch --help`. Exit codes: 0 success, 1 gate or run failed,",
    ]
    parts += ["2 usage or key, 3 timeout or unavailable.", ""]
    for name, command in commands(typer.main.get_command(cli), "featurewatch"):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
        usage = " ".join([name, *((p.metavar or p.name or "").upper() for p in arguments)])
        parts += [f"## {name}", "", f"    {usage}" + (" [OPTIONS]" if options else ""), ""]
        parts += [" ".join((command.help or "").split()), ""]
        parts += [f"- `{(p.metavar or p.name or '').upper()}`: {p.help}" for p in arguments]
        parts += [f"- `{'`, `'.join([*p.opts, *p.secondary_opts])}`: {p.help}" for p in options]
        parts += [""]
    return "\n".join(parts).rstrip() + "\n"


def pages() -> dict[Path, str]:
    """Every page that this script writes, with its text."""
    configuration = (DOCS / "configuration.md").read_text(encoding="utf-8")
    configuration = between(configuration, "server", settings_table(Settings))
    configuration = between(configuration, "client", settings_table(ClientSettings))
    monitoring = between((DOCS / "monitoring.md").read_text(encoding="utf-8"), "metrics", metrics_table())
    api = between((DOCS / "api.md").read_text(encoding="utf-8"), "alert rules", alert_rules_table())
    return {
        DOCS / "api.md": api,
        DOCS / "configuration.md": configuration,
        DOCS / "api-reference.md": api_reference.page(),
        DOCS / "cli.md": cli_page(),
        DOCS / "monitoring.md": monitoring,
        DOCS / "page.md": between((DOCS / "page.md").read_text(encoding="utf-8"), "statuses", statuses_table()),
        DOCS / "verdicts.md": between((DOCS / "verdicts.md").read_text(encoding="utf-8"), "figures", figures_table()),
        **client_code.pages(),
    }


def main() -> int:
    """Write the pages; with `--check`, say which are out of date instead."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(DOCS.parent)} is out of date; run make docs\n")
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

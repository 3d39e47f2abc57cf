"""`featurewatch ... delete` asks first, and deletes nothing where nobody can be asked."""

import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from featurewatch.service.cli import app
from featurewatch.service.client import Client
from tests.cli.live import within

COMMANDS = {
    "family": ["family", "delete", "toy"],
    "checkpoint": ["checkpoint", "delete", "toy", "v1"],
    "run": ["run", "delete", "run_none"],
    "signature": ["signature", "delete", "toy", "refusal"],
}


class Terminal(CliRunner):
    """Whose input says that it is a terminal."""

    def isolation(self, *arguments: Any, **options: Any) -> Any:
        context = super().isolation(*arguments, **options)

        class Isolated:
            def __enter__(self) -> Any:
                found = context.__enter__()
                sys.stdin.isatty = lambda: True  # type: ignore[method-assign]
                return found

            def __exit__(self, *error: Any) -> Any:
                return context.__exit__(*error)

        return Isolated()


@pytest.fixture
def server(filled_url: str) -> str:
    return filled_url


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_without_a_terminal_it_takes_yes(words: list[str], server: str) -> None:
    done = within("--url", server, *words)
    assert done.returncode == 2 and "add --yes to delete without asking" in done.stderr
    asked = within("--url", server, *words, "--yes")
    assert asked.returncode == 2 and ("There is no" in asked.stderr or "has no" in asked.stderr), "it was sent"


def test_what_is_deleted_is_gone(server: str) -> None:
    with Client(server) as client:
        client.create_family("mine", ["resid_post.1"])
        client.register("mine", name="v1", uri="hf://org/model@v1")
        second = client.register("mine", name="v2", uri="hf://org/model@v2")
        blocked = within("--url", server, "checkpoint", "delete", "mine", "v1", "--yes")
        assert blocked.returncode == 2 and "has children: v2" in blocked.stderr
        assert second["run"]
        client.cancel(second["run"]["id"])
        done = within("--url", server, "run", "delete", second["run"]["id"], "--yes", "--json")
        assert done.returncode == 0 and second["run"]["id"] in done.stdout
        for words in (["checkpoint", "delete", "mine", "v2"], ["checkpoint", "delete", "mine", "v1", "--reparent"]):
            done = within("--url", server, *words, "--yes")
            assert done.returncode == 0 and "Deleted " in done.stderr, done.stderr
        assert list(client.checkpoints("mine")) == []

        runner = Terminal()
        no = runner.invoke(app, ["--url", server, "family", "delete", "mine"], input="n\n")
        assert no.exit_code == 1 and "Nothing was deleted." in no.output
        assert client.family("mine")
        yes = runner.invoke(app, ["--url", server, "family", "delete", "mine"], input="y\n")
        assert yes.exit_code == 0 and "all its checkpoints" in yes.output
        assert "mine" not in [family["name"] for family in client.families()]

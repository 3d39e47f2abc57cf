"""Rules that linters do not check: sizes, access to the environment, the contents of an installation."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import PEP420PackageFinder

from tests.plugins import lanes

ROOT = Path(__file__).parents[2]
FOLDERS = ("featurewatch", "service", "workers", "migrations")
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES = 400, 60


def test_sizes() -> None:
    """Files and functions that are too long: do two things live there?"""
    found = []
    for path in CODE:
        name, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES:
            found.append(f"{name} has {text.count(chr(10))} lines")
        if "versions" in path.parts:
            continue  # a migration is one list of tables
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                found += [f"{name}: {node.name} has {lines} lines"] if lines > MOST_FUNCTION_LINES else []
    assert not found


def test_only_the_settings_read_the_environment() -> None:
    """Only the settings read single variables; other code may pass the whole environment on."""
    readers = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.getenv", "os.environ.get"):
                readers.add(str(path.relative_to(ROOT)))
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                readers.add(str(path.relative_to(ROOT)))
    assert readers == set()


def test_commits_happen_at_the_edge() -> None:
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
                allowed = path.relative_to(ROOT).parts[:2] == ("service", "kit") or "middleware" in path.name
                assert allowed, f"{path} commits; only the edge of a request or task may"


def test_an_installation_holds_everything() -> None:
    """Packages and data files that pyproject names cover every file that the code needs at run time."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = PEP420PackageFinder.find(str(ROOT), include=config["packages"]["find"]["include"])
    for path in CODE:
        assert package_of(path.parent) in packages, f"{path} would not be installed"
    data = set()
    for package, globs in config["package-data"].items():
        folder = (ROOT / package.replace(".", "/")).resolve()
        data |= {path for pattern in globs for path in folder.glob(pattern)}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path in data, f"{path} would not be installed"


def package_of(folder: Path) -> str:
    """The package that a folder of the source is imported as: `featurewatch` has links to the others."""
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "featurewatch" else ("featurewatch", *parts))


def test_the_service_starts_without_torch() -> None:
    """What the API image does: import the application and the command where torch and transformers are not there."""
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'accelerate', 'peft', 'gguf'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import featurewatch.service.app, featurewatch.service.cli.host.local, featurewatch.service.migrate\n"
        "import featurewatch.workers.app, featurewatch.workers.tasks\n"
        "print('fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_make_help_lists_every_command() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"setup", "demo", "run", "test", "unit", "lint", "fmt", "coverage", "bench", "docs"} <= set(listed)


def test_slow_tests_exist() -> None:
    """`make unit` leaves them out by path, and a path of a test that was renamed leaves out nothing."""
    for entry in lanes.SLOW:
        path, _, name = entry.partition("::")
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), entry

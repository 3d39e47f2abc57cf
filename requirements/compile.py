"""Write the locks: `make lock`, or `make lock ARGS=--upgrade` for the newest releases.

Each lock lists every package of one installation with a version and the SHA-256 of its files, for Python 3.11 and newer
on any platform, in the format of `pip install --require-hashes`. Versions are those of the present locks where
pyproject.toml and constraints.txt still allow them, and the same in all of them.

torch has locks of its own, because it comes in two builds: PyPI's, which brings CUDA along on Linux, and the one of
PyTorch's CPU index.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PYPI, CPU = "https://pypi.org/simple", "https://download.pytorch.org/whl/cpu"
SETS: dict[str, tuple[str, ...]] = {
    "base": (),
    "api": ("otel", "parquet", "s3"),
    "worker": ("worker", "otel", "s3"),
    "demo": ("worker", "notebook"),
    "test": ("test",),
}
"""Lock -> extras of pyproject.toml."""
BOOTSTRAP = ["uv", "virtualenv"]
"""What `make` runs before there is an environment: each has a lock of its own."""
OF_TORCH = re.compile(r"(torch|triton|nvidia-.+|cuda-.+)==")
ENTRY = re.compile(r"^(?=[A-Za-z0-9])(?:.*\\\n)*.*\n", re.M)
HEADER = "# Written by `make lock`. Do not edit.\n"


def main() -> None:
    """Write all locks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest releases that are allowed")
    upgrade = parser.parse_args().upgrade
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        everything = Path(folder) / "everything.txt"
        if not upgrade:
            everything.write_text("".join(dict.fromkeys(e for name in SETS for e in entries(name))), encoding="utf-8")
        build = Path(folder) / "build.in"
        build.write_text("\n".join(project["build-system"]["requires"]), encoding="utf-8")
        pins = ROOT / "constraints.txt"
        extras = sorted({extra for extras in SETS.values() for extra in extras})
        compiled(everything, [*of_project(extras), str(build), "--constraints", str(pins)])
        for name, extras in SETS.items():
            lock = compiled(Path(folder) / f"{name}.txt", [*of_project(extras), str(build), "-c", str(everything)])
            write(name, [entry for entry in lock if not OF_TORCH.match(entry)])
        torch = Path(folder) / "torch.in"
        torch.write_text(f"{pinned('torch')}\n", encoding="utf-8")
        lock = compiled(Path(folder) / "cuda.txt", [str(torch), "-c", str(everything)])
        write("torch-cuda", [entry for entry in lock if OF_TORCH.match(entry)])
        cpu(torch, Path(folder) / "cpu.txt")
        for name in BOOTSTRAP:
            source = Path(folder) / f"{name}.in"
            source.write_text(f"{name}\n", encoding="utf-8")
            output = Path(folder) / f"{name}.txt"
            if not upgrade:
                output.write_text("".join(entries(f"bootstrap-{name}")), encoding="utf-8")
            write(f"bootstrap-{name}", compiled(output, [str(source)]))


def of_project(extras: list[str] | tuple[str, ...]) -> list[str]:
    """Arguments that name the project's own requirements with these extras."""
    return [str(ROOT / "pyproject.toml"), *(word for extra in extras for word in ("--extra", extra))]


def compiled(output: Path, arguments: list[str], index: str = PYPI) -> list[str]:
    """Resolve requirements into `output`, whose present content is preferred, and return its entries."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--default-index", index,
               "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate",
               "--output-file", str(output), *arguments]  # fmt: skip
    subprocess.run(command, check=True)
    return ENTRY.findall(output.read_text(encoding="utf-8"))


def cpu(torch: Path, output: Path) -> None:
    """The lock of the CPU build for Linux, from PyTorch's index; the present one where that cannot be reached."""
    requirement = f"{pinned('torch')}+cpu"
    torch.write_text(f"{requirement} ; sys_platform == 'linux'\n", encoding="utf-8")
    try:
        write("torch-cpu", compiled(output, [str(torch), "--no-deps"], CPU))
    except subprocess.CalledProcessError:
        if not any(entry.startswith(f"{requirement} ") for entry in entries("torch-cpu")):
            sys.exit(f"{CPU} cannot be reached, and requirements/torch-cpu.lock is not of {requirement}")
        sys.stderr.write(f"{CPU} cannot be reached: requirements/torch-cpu.lock stays as it is\n")


def pinned(name: str) -> str:
    """The line of constraints.txt that pins a package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def entries(name: str) -> list[str]:
    """The entries of a lock as it is now: each a requirement with its hashes. Empty where there is none."""
    path = HERE / f"{name}.lock"
    return ENTRY.findall(path.read_text(encoding="utf-8")) if path.exists() else []


def write(name: str, lock: list[str]) -> None:
    """Write a lock."""
    (HERE / f"{name}.lock").write_text(HEADER + "".join(lock), encoding="utf-8")


if __name__ == "__main__":
    main()

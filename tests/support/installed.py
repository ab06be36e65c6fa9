"""A process in which this checkout is installed, with the entry points that its wheel has."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import kombu_cfqueues

ROOT = Path(__file__).parents[2]


def as_installed(folder: Path) -> str:
    """Write into *folder* what an installation says of this checkout; return a ``PYTHONPATH``.

    The environment of the tests may have the package from another checkout, or not at all.
    """
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    groups = setup["options.entry_points"].items()
    version = kombu_cfqueues.__version__
    info = folder / f"kombu_cfqueues-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kombu-cfqueues\nVersion: {version}\n"
    )
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n{names.strip()}\n" for group, names in groups)
    )
    return os.pathsep.join([str(folder), str(ROOT)])

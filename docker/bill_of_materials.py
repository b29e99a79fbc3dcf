"""Writes what an image holds: a CycloneDX bill of materials and a list of licences.

    python bill_of_materials.py --image laplora-service --python /opt/venv/bin/python --folder /bom

Run in the image's build by a Python that has cyclonedx-bom, which the image does not keep. ``bom.cdx.json`` has the
packages of the Python given, those of Debian, the interpreter where Debian did not bring it, and the models that are
baked in; ``licences.csv`` has their names, versions and licences. A package's own words about its licence are
repeated, not judged.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

VERSION = SchemaVersion.V1_6
COPYRIGHT = Path("/usr/share/doc")
#: Prints, in the image's Python, the licence that each package states in the older of the two fields.
STATED = """
import importlib.metadata as m, json
print(json.dumps({d.name: (d.metadata.get("License") or "").strip() for d in m.distributions()}))
"""
#: Prints, in the image's Python, name, version and licence of a base model or sentence encoder.
MODEL = """
import json, sys
from laplora.models.offline import OFFLINE_ENCODERS, OFFLINE_MODELS
model = (OFFLINE_MODELS | OFFLINE_ENCODERS)[sys.argv[1]]
print(json.dumps([sys.argv[1], model.version, model.licence]))
"""


def output(*command: str) -> str:
    """Return what a command prints.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def python_packages(python: str) -> Bom:
    """Return the bill of a Python environment's packages, as cyclonedx-bom reads them."""
    command = ("-m", "cyclonedx_py", "environment", python, "--no-validate", "-o", "-")  # the whole is validated
    read = json.loads(output(sys.executable, *command))
    bom: Bom = Bom.from_json(read)  # type: ignore[attr-defined]  # a decorator of the library makes it
    # It reads the licence's own field of later metadata; an earlier one may have a name of no fixed form.
    stated = {normal(name): text for name, text in json.loads(output(python, "-c", STATED)).items()}
    for component in bom.components:
        text = stated.get(normal(component.name), "")
        if not component.licenses and text and "\n" not in text:
            component.licenses.add(DisjunctiveLicense(name=text))
    return bom


def normal(name: str) -> str:
    """Return a Python package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def debian_packages() -> Iterator[Component]:
    """Yield the installed packages of Debian; nothing on another system."""
    system = platform.freedesktop_os_release()
    if system["ID"] != "debian":
        return
    distro = f"debian-{system.get('VERSION_ID', 'sid')}"
    lines = output("dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n").splitlines()
    for name, version, architecture in (line.split("\t") for line in lines):
        yield Component(
            name=name,
            version=version,
            purl=PackageURL("deb", "debian", name, version, {"arch": architecture, "distro": distro}),
            licenses=[DisjunctiveLicense(name=text) for text in debian_licences(name)],
        )


def debian_licences(package: str) -> list[str]:
    """Return the licences that a package's machine-readable copyright file names, none where it has no such file."""
    file = COPYRIGHT / package / "copyright"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return sorted(set(re.findall(r"^License: *(\S.*?) *$", text, re.M))) if text.startswith("Format: http") else []


def interpreter() -> Iterator[Component]:
    """Yield the Python that the image runs, where no package of Debian brought it."""
    file = str(Path(sys.executable).resolve())
    if subprocess.run(["dpkg-query", "--search", file], capture_output=True, check=False).returncode:
        version = platform.python_version()
        yield Component(
            name="cpython",
            type=ComponentType.PLATFORM,
            version=version,
            purl=PackageURL("generic", name="python", version=version),
            licenses=[LicenseFactory().make_with_id("PSF-2.0")],
        )


def base_model(python: str, name: str) -> Component:
    """Return a base model or sentence encoder that is baked into the image."""
    name, version, licence = json.loads(output(python, "-c", MODEL, name))
    return Component(
        name=name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=version,
        licenses=[LicenseFactory().make_from_string(licence)],
    )


def licence_text(component: Component) -> str:
    """Return a component's licences in one line, and where to look where it states none."""
    texts = sorted(
        licence.value if isinstance(licence, LicenseExpression) else (licence.id or licence.name or "")
        for licence in component.licenses
    )
    if texts:
        return "; ".join(texts)
    is_debian = component.purl is not None and component.purl.type == "deb"
    return f"not stated; see {COPYRIGHT / component.name / 'copyright'}" if is_debian else "not stated"


def kind(component: Component) -> str:
    """Return where a component comes from: pypi, deb or generic, or that it is a model."""
    return component.purl.type if component.purl else component.type.value


def main() -> None:
    """Write both files.

    Raises:
        ValueError: what would be written is no valid bill of materials.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image", required=True, help="name of the image")
    parser.add_argument("--python", required=True, help="the image's Python")
    parser.add_argument("--models", default=[], nargs="*", help="names of base models and encoders that are baked in")
    parser.add_argument("--folder", required=True, type=Path, help="where bom.cdx.json and licences.csv go")
    options = parser.parse_args()
    bom = python_packages(options.python)
    bom.metadata.component = Component(name=options.image, type=ComponentType.CONTAINER)
    bom.components.update(debian_packages(), interpreter())
    bom.components.update(base_model(options.python, name) for name in options.models)
    bom.register_dependency(bom.metadata.component, bom.components)
    text = make_outputter(bom, OutputFormat.JSON, VERSION).output_as_string(indent=1)
    if error := JsonStrictValidator(VERSION).validate_str(text):
        raise ValueError(f"no valid bill of materials: {error}")
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "bom.cdx.json").write_text(f"{text}\n", encoding="utf-8")
    with (options.folder / "licences.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("name", "version", "kind", "licences"))
        ordered = sorted(bom.components, key=lambda component: (kind(component), component.name))
        rows.writerows((each.name, each.version, kind(each), licence_text(each)) for each in ordered)


if __name__ == "__main__":
    main()

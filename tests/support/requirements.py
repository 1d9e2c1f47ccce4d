"""What pyproject.toml asks for."""

import tomllib

from packaging.requirements import Requirement

from tests.support.commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(*extras: str) -> list[Requirement]:
    """What the package and some of its extras ask for, with what these include of one another."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for requirement in (Requirement(text) for extra in extras for text in PROJECT["optional-dependencies"][extra]):
        found += required(*requirement.extras) if requirement.name == PROJECT["name"] else [requirement]
    return list(dict.fromkeys(found))

"""What extras of pyproject.toml need, one requirement a line: `python tools/requirements.py dev`.

With the requirements of the package itself. pip can list them only with a wheel at hand.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]


def requirements(extra: str) -> list[str]:
    """An extra may ask for others of the same package: `name[first,second]`."""
    found = []
    for requirement in PROJECT["optional-dependencies"][extra]:
        head, bracket, others = requirement.partition("[")
        if head == PROJECT["name"] and bracket:
            for other in others.removesuffix("]").split(","):
                found += requirements(other.strip())
        else:
            found.append(requirement)
    return found


def main() -> None:
    found = dict.fromkeys(PROJECT["dependencies"])
    for extra in sys.argv[1:]:
        found |= dict.fromkeys(requirements(extra))
    sys.stdout.writelines(f"{requirement}\n" for requirement in found)


if __name__ == "__main__":
    main()

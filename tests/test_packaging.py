"""What a wheel holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_of_the_checkout_is_in_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "edgekit").rglob("__init__.py")
    }
    assert {"edgekit.server", "edgekit.assistant.documents.parsers"} <= found
    assert found <= set(settings["packages"])
    assert set(settings["package-dir"]) == set(settings["packages"])
    for name, folder in settings["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), name

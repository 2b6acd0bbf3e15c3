"""``python -m edgekit`` is the ``edgekit`` command."""

from edgekit.cli.main import run

if __name__ == "__main__":
    run()

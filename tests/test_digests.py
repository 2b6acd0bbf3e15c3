"""What decides whether a finished step is run again."""

import subprocess
import sys

from edgekit.digests import CORE

# they say sentences, or what is refused; no step's result depends on them
SENTENCES = {"errors", "refused_families", "resemblance", "source_formats"}


def test_every_module_that_all_steps_build_on_is_in_the_digest():
    """A change of a module that ``checkpoint`` or ``layout`` imports must run the steps again."""
    code = (
        "import edgekit.checkpoint, edgekit.layout, edgekit.sequences, edgekit.text, sys;"
        "print(*(m.split('.')[1] for m in sys.modules if m.startswith('edgekit.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - SENTENCES == set(CORE)

"""``edgekit distill train``, and the verbs that make a cache."""

from __future__ import annotations

import typer

from edgekit.cli.distill_capture import capture_app, verify_app
from edgekit.cli.distill_follow import compare_app, follow_app
from edgekit.cli.distill_stages import stages_app
from edgekit.cli.distill_train import train_app

app = typer.Typer(add_completion=False, help="Capture a teacher's logits; train a student on them.")


app.add_typer(train_app)
app.add_typer(capture_app)
app.add_typer(verify_app)
app.add_typer(compare_app)
app.add_typer(follow_app)
app.add_typer(stages_app)

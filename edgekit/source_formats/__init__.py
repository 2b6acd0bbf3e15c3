"""One module per form in which checkpoints store their weights (:mod:`edgekit.source_weights`)."""

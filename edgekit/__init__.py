"""edgekit: from a cloud Mixture-of-Experts checkpoint to a small model on an AI PC.

Importing this package is cheap and never imports torch or transformers; what needs them lives in
``edgekit.distill`` and ``edgekit.quantize`` and says so when the ``build`` extra is missing.
"""

__version__ = "0.1.0"

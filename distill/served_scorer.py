"""A served teacher as a function, for stages that ask it about text that they have just written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.distill.same_tokenizer import real_tokens
from edgekit.distill.served_http import Requests, Server
from edgekit.distill.served_teacher import ServedTeacher
from edgekit.distill.targets import TopTargets
from edgekit.errors import BadInputError
from edgekit.sequences import TokenSequence


def served_scorer(
    model: Path, server: Server, top_k: int
) -> Callable[[Sequence[TokenSequence]], list[TopTargets]]:
    """What the served ``model``, of which the config and tokenizer are in that directory, says at
    the counted positions of sequences: ``top_k`` tokens and the mass of the others.

    The function raises:
        BadInputError: the server does not serve the model, or not as it must.
        MissingRuntimeError: the server is lost.
    """
    outputs = describe(read_config(model), str(model / "config.json")).vocab_size
    vocab_size = real_tokens(model, outputs)

    async def ask(sequences: Sequence[TokenSequence]) -> list[TopTargets]:
        async with Requests(server) as requests:
            kept = min(top_k, vocab_size)
            teacher = ServedTeacher(requests, server.model, model, outputs, vocab_size, kept)
            longest = await teacher.probe()
            length = max(len(sequence.tokens) for sequence in sequences)
            if longest is not None and length > longest:
                raise BadInputError(
                    f"{requests.address} takes sequences of up to {longest} tokens and the student "
                    f"wrote one of {length}; lower new_tokens, or start the server with more"
                )
            return await asyncio.gather(*map(teacher.targets, sequences))

    return lambda sequences: asyncio.run(ask(sequences)) if sequences else []

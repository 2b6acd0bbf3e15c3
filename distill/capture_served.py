"""Ask a served teacher once for every sequence and keep what it says.

As :mod:`edgekit.distill.capture`, but the teacher runs elsewhere, in whatever serves it: here there
are its config and its tokenizer. Before anything is asked, a probe finds out whether the server
gives what a cache needs and serves the model that it should. Shards are written when the answers of
all their sequences are there, so a lost server or an interruption costs the shard that was under
way, and the same command asks for the missing shards only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.distill.cache import CacheIndex
from edgekit.distill.cache_write import PlannedShard, find_shard, plan_shards, write_shard
from edgekit.distill.capture import CaptureReport, put_together, require_text_fits
from edgekit.distill.same_tokenizer import real_tokens, tokenizer_digest
from edgekit.distill.served_http import Requests, Server, Sleep
from edgekit.distill.served_teacher import ServedTeacher
from edgekit.distill.targets import TopTargets
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences

AHEAD = 2  # times the requests under way: begun before a slow one in front is done


def capture_served(
    model: Path,
    sequences: Path,
    server: Server,
    top_k: int,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
    elsewhere: Sequence[Path] = (),
    sleep: Sleep = asyncio.sleep,
) -> CaptureReport:
    """Write the logit cache of ``sequences/sequences.safetensors`` into ``out``.

    ``model`` is a directory with the config and tokenizer of what is served; weights are not read.
    Targets are the ``top_k`` most probable tokens and the mass of the others. Shards that an
    interrupted run finished are taken from ``scratch``, others' from the directories ``elsewhere``.

    Raises:
        BadInputError: the text does not fit the model, or the server does not serve it or not as
            it must; says what to change.
        MissingRuntimeError: the server is lost; what was finished is in ``scratch``.
        OutOfResourcesError: the disk is full.
    """
    work, text = scratch or out, read_sequences(sequences / FILE_NAME)
    config = str(model / "config.json")
    architecture = describe(read_config(model), config)
    require_text_fits(model, architecture, text)
    settings = served_settings(model, architecture.vocab_size, server, top_k)
    places = [work, *elsewhere]
    missing = [
        shard for shard in plan_shards(text, settings) if find_shard(shard.file, places) is None
    ]
    if missing:
        outputs = architecture.vocab_size
        asyncio.run(_ask(missing, model, outputs, settings, server, work, progress, sleep))
    return put_together(model, settings, text, out, places, progress)


def served_settings(model: Path, vocab_size: int, server: Server, top_k: int) -> CacheIndex:
    """The index of a cache of a served model without its sequences and shards."""
    vocab_size = real_tokens(model, vocab_size)
    return CacheIndex(
        teacher=f"served:{server.model}@{server.host}",
        tokenizer=tokenizer_digest(model),
        vocab_size=vocab_size,
        temperature=1.0,
        targets="top_k",
        bytes_per_token=0,
        probabilities=False,
        top_k=min(top_k, vocab_size),
        seed=0,
        sequences="",
        training=(),
        held_out=(),
    )


async def _ask(
    shards: Sequence[PlannedShard],
    model: Path,
    outputs: int,
    settings: CacheIndex,
    server: Server,
    work: Path,
    progress: Progress,
    sleep: Sleep,
) -> None:
    """Write the shards into ``work``."""
    async with Requests(server, sleep) as requests:
        vocab_size, top_k = settings.vocab_size, settings.top_k
        teacher = ServedTeacher(requests, server.model, model, outputs, vocab_size, top_k)
        longest = await teacher.probe()
        text = [sequence for shard in shards for sequence in shard.sequences]
        _require_context(requests.address, longest, text)
        tokens = sum(shard.tokens for shard in shards)
        with progress.task("ask the teacher for its logits", tokens) as task:
            async with aclosing(_answers(teacher, text, AHEAD * server.concurrency)) as answers:
                for shard in shards:
                    found = []
                    for sequence in shard.sequences:
                        found.append(await anext(answers))
                        task.advance(len(sequence.tokens))
                    write_shard(work / shard.file, found, settings)


async def _answers(
    teacher: ServedTeacher, text: Sequence[TokenSequence], ahead: int
) -> AsyncGenerator[TopTargets]:
    """The targets of every sequence in order, of which ``ahead`` are asked for at once."""
    asked: deque[asyncio.Task[TopTargets]] = deque()
    try:
        for sequence in text:
            asked.append(asyncio.create_task(teacher.targets(sequence)))
            if len(asked) == ahead:
                yield await asked.popleft()
        while asked:
            yield await asked.popleft()
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def _require_context(address: str, longest: int | None, text: Sequence[TokenSequence]) -> None:
    length = max(len(sequence.tokens) for sequence in text)
    if longest is not None and length > longest:
        raise BadInputError(
            f"{address} takes sequences of up to {longest} tokens and the text has one of {length};"
            " lower [data] sequence_length, or start the server with more (--max-model-len in "
            "vLLM, --context-length in SGLang)"
        )

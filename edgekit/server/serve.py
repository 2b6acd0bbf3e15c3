"""``edgekit serve``: a pack behind the local API, from the socket to the last answer.

The socket is bound and the server answers ``/health`` at once; the pack is verified and loaded in
the engine's thread. The state file tells a parent process where the server is, and is removed when
it ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgekit.checkpoint import read_json
from edgekit.errors import BadInputError, EdgekitError
from edgekit.local.listen import Listener, LocalServer, Tls, bind, stop_with_parent
from edgekit.local.private import (
    new_token,
    private_directory,
    removed_at_exit,
    token_in,
    write_private_json,
)
from edgekit.manifest import MANIFEST, read_manifest, require_kind
from edgekit.progress import Progress, Silent
from edgekit.runtimes.batching import BatchEngine
from edgekit.server.answer import Answerer
from edgekit.server.app import application
from edgekit.server.limits import LIMITS
from edgekit.server.scheduler import Scheduler, stopped
from edgekit.server.service import Model, Service

GRACE = 10.0  # seconds that running answers have when the server stops


@dataclass(frozen=True)
class Options:
    """What ``edgekit serve`` is told.

    Attributes:
        token_file: kept from run to run; None makes a token for this run alone where there is a
            ``state_file`` to tell it, and keeps one in the user's configuration otherwise.
        state_file: told ``{url, token, admin_token, pid, model}`` once the server listens.
        experts: of a pack with nested sizes; 0 for the largest that fits.
        cache_bytes: memory for prompts' prefixes; None leaves it to the runtime.
        child: a parent process started it: it ends when standard input does, and goes on with
            ``/health`` saying "failed" when the model cannot be loaded.
    """

    pack: Path
    host: str = "127.0.0.1"
    port: int = 0
    device: str = ""
    experts: int = 0
    token_file: Path | None = None
    state_file: Path | None = None
    embeddings: Path | None = None
    parallel: int = 16
    max_queue: int = LIMITS.queue
    cache_bytes: int | None = None
    child: bool = False
    allow_damaged: bool = False
    tls: Tls | None = None


@dataclass(frozen=True)
class Serving:
    """Where the server listens; ``token_file`` is None when the token is in the state file."""

    url: str
    model: str
    token: str
    token_file: Path | None
    exposed: bool


def serve(
    options: Options,
    ready: Callable[[Serving], None] = lambda serving: None,
    progress: Progress | None = None,
    factory: Callable[[], BatchEngine] | None = None,
) -> None:
    """Answer requests until stopped by a signal, ``/admin/shutdown`` or the end of the parent.

    Args:
        ready: called once the server listens, before the model is loaded.
        factory: makes the engine instead of loading the pack, for tests.

    Raises:
        BadInputError: the pack is none, the port is taken, a file cannot be used.
        EdgekitError: what kept the model from loading, unless a parent process watches.
    """
    model = describe(options.pack)
    _check_tls(options.tls)
    load = factory or Loader(options, progress or Silent())
    listener = bind(options.host, options.port, options.tls)
    try:
        scheduler = Scheduler(load, options.max_queue)
        service = Service(model, scheduler, Answerer(scheduler))
        token, token_file = _token(options)
        admin_token = new_token()
        app = application(
            service, listener.hosts, listener.origins, token, admin_token, lambda: server.stop()
        )
        server = LocalServer(app, listener, GRACE, lambda: scheduler.end_all(stopped()))
        _load_embedder(service, options)
        with removed_at_exit(options.state_file):
            if options.state_file is not None:
                _write_state(options.state_file, listener, token, admin_token, model)
            if options.child:
                stop_with_parent(server.stop)
            else:
                scheduler.on_failed = lambda error: server.stop()
            exposed = listener.tls is not None and options.host not in ("127.0.0.1", "localhost")
            ready(Serving(listener.url, model.id, token, token_file, exposed))
            server.serve_until_stopped()
    finally:
        listener.socket.close()
    if scheduler.failure is not None and not options.child:
        raise scheduler.failure


class Loader:
    """Makes the engine of a pack; the pack is verified once, however often the engine is made."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options, self._progress = options, progress
        self._found: tuple[Path, str] | None = None

    def __call__(self) -> BatchEngine:
        """Load the model.

        Raises:
            EdgekitError: it cannot be loaded here.
        """
        from edgekit.runtimes.devices import locate

        options = self._options
        if self._found is None:
            self._found = locate(
                options.pack, options.device, self._progress, options.allow_damaged,
                experts=options.experts,
            )  # fmt: skip
        from edgekit.runtimes.load_batching import load_batch_engine

        directory, target = self._found
        return load_batch_engine(
            directory, target, max_running=options.parallel, cache_bytes=options.cache_bytes
        )


def describe(pack: Path) -> Model:
    """What a pack, or a bare variant, says about itself.

    Raises:
        BadInputError: it is neither.
    """
    if (pack / "config.json").is_file() and not (pack / MANIFEST).is_file():
        config = read_json(pack / "config.json")
        size = sum(f.stat().st_size for f in pack.glob("*.safetensors"))
        context = config.get("max_position_embeddings")
        return Model(
            id=_identifier(pack.resolve().name),
            architecture=str(config.get("model_type", "")),
            context_length=context if isinstance(context, int) else 0,
            size=size,
        )
    manifest = read_manifest(pack)
    require_kind(manifest, pack, "chat")
    return Model(
        id=manifest.name,
        version=manifest.version,
        license=manifest.license,
        architecture=manifest.student.architecture,
        parameters=manifest.student.parameters,
        context_length=manifest.student.context_length,
        scheme=manifest.student.scheme,
        size=sum(f.size for v in manifest.variants for f in v.files),
        digest=hashlib.sha256((pack / MANIFEST).read_bytes()).hexdigest(),
    )


def default_token_file() -> Path:
    """Where the token of a server that people start themselves is kept."""
    return Path(platformdirs.user_config_path("edgekit")) / "serve.token"


def _identifier(name: str) -> str:
    cleaned = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-")
    return cleaned[:64] or "model"


def _token(options: Options) -> tuple[str, Path | None]:
    """The token, and the file that keeps it."""
    if options.token_file is None and options.state_file is not None:
        return new_token(), None
    path = options.token_file
    if path is None:
        path = default_token_file()
        private_directory(path.parent)
    return token_in(path), path


def _write_state(
    path: Path, listener: Listener, token: str, admin_token: str, model: Model
) -> None:
    state = {
        "url": listener.url,
        "token": token,
        "admin_token": admin_token,
        "pid": os.getpid(),
        "model": model.id,
    }
    write_private_json(path, state)


def _load_embedder(service: Service, options: Options) -> None:
    """Load the embedding pack in the background."""
    if options.embeddings is None:
        return
    pack = options.embeddings
    service.embedding_model = describe_embeddings(pack)
    service.embedding_error = ""

    def load() -> None:
        from edgekit.runtimes.embedding import load_embedder
        from edgekit.server.embeddings import EmbeddingThread

        try:
            service.embedder = EmbeddingThread(load_embedder(pack))
        except EdgekitError as error:
            service.embedding_error = str(error)
            print(f"error: {error}", file=sys.stderr)

    threading.Thread(target=load, name="embedder-load", daemon=True).start()


def describe_embeddings(pack: Path) -> str:
    """The name of an embedding pack.

    Raises:
        BadInputError: it is none.
    """
    manifest = read_manifest(pack)
    require_kind(manifest, pack, "embedding")
    return manifest.name


def _check_tls(tls: Tls | None) -> None:
    if tls is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise BadInputError(
            f"{tls.certificate} and {tls.key} are no certificate and its key in PEM form "
            f"({getattr(error, 'reason', None) or error.strerror or error}); give others"
        ) from error

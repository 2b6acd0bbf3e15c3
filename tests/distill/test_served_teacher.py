"""A cache of a served teacher is that of a local one, whatever the server goes through."""

import asyncio
import contextlib
import json
import math
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from edgekit.cli.main import main
from edgekit.distill import cache_write
from edgekit.distill.cache import INDEX, LogitCache
from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.capture_served import capture_served
from edgekit.distill.same_tokenizer import PROBES, real_tokens
from edgekit.distill.served_http import Requests, Server
from edgekit.distill.served_scorer import served_scorer
from edgekit.distill.served_teacher import top_targets
from edgekit.distill.targets import top_k_targets
from edgekit.distill.teacher import teacher_logits
from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.progress import Silent
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences
from edgekit.text import ChatTokenizer

TOP_K = 20  # vLLM's default limit
NAME = "org/teacher"
SECRET = "sk-of-a-test-0123456789"


@dataclass
class Request:
    path: str
    body: dict
    key: str


@dataclass
class SimulatedServer:
    """Answers as vLLM or SGLang do, from a model's logits, and can be told to misbehave.

    ``faults`` maps the number of a scoring request, from 1, to a status or to "drop", "half",
    "html" or "meet": to be answered when three of these are under way.
    """

    logits: object
    tokenizer: ChatTokenizer
    kind: str = "vllm"
    max_logprobs: int = TOP_K
    max_model_len: int | None = 512
    spelled: str | None = ""  # what /detokenize says for the right text; None: there is none
    shift: int = 0  # added to ids: another vocabulary
    raw: bool = False  # logits for log-probabilities
    faults: dict = field(default_factory=dict)
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(3))
    lost_after: float = math.inf
    retry_after: str = ""
    requests: list = field(default_factory=list)
    scored: int = 0
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def models(self):
        return {"object": "list", "data": [{"id": NAME, "max_model_len": self.max_model_len}]}

    def fault(self):
        with self.lock:
            self.scored += 1
            return "drop" if self.scored > self.lost_after else self.faults.get(self.scored)

    def top(self, prompt, top_k):
        """Of the positions after the first: ids and log-probabilities of the most probable."""
        logits = torch.from_numpy(self.logits(np.array(prompt, np.int32)))[:-1]
        values = logits if self.raw else logits.log_softmax(-1)
        return values, values.topk(top_k)

    def completions(self, body):
        prompt, top_k = body["prompt"], body.get("prompt_logprobs", 0)
        if self.kind != "vllm":
            return 200, {"choices": [{"index": 0, "text": "a", "logprobs": None}]}
        if top_k > self.max_logprobs:
            limit = f"which is greater than max allowed: {self.max_logprobs}"
            message = f"Requested prompt logprobs of {top_k}, {limit}"
            return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
        whole, top = self.top(prompt, top_k)
        rows = [None]
        for own, values, chosen, best in zip(prompt[1:], whole, top.indices, top.values):
            ids, logprobs = [own, *chosen.tolist()], [float(values[own]), *best.tolist()]
            rank = int((values > values[own]).sum()) + 1
            ranks = [rank, *range(1, top_k + 1)]
            rows.append(
                {
                    str(i + self.shift * (i != own)): {"logprob": max(p, -9999.0), "rank": r,
                                                       "decoded_token": "x"}
                    for i, p, r in zip(ids, logprobs, ranks)
                }
            )  # fmt: skip
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1}
        choice = {"index": 0, "text": "a", "logprobs": None, "prompt_logprobs": rows}
        return 200, {"object": "text_completion", "choices": [choice], "usage": usage}

    def generate(self, body):
        if self.kind != "sglang":
            return 404, {"detail": "Not Found"}
        assert body["return_logprob"] and body["logprob_start_len"] == 0
        prompt = body["input_ids"]
        whole, top = self.top(prompt, body["top_logprobs_num"])
        own = [[float(values[i]), i, None] for i, values in zip(prompt[1:], whole)]
        rows = [
            [[p, i + self.shift, None] for p, i in zip(values.tolist(), ids.tolist())]
            for values, ids in zip(top.values, top.indices)
        ]
        own = [[None, prompt[0], None], *own]
        info = {"input_token_logprobs": own, "input_top_logprobs": [None, *rows]}
        return 200, {"text": "a", "meta_info": info}

    def detokenize(self, body):
        if self.spelled is None:
            return 404, {"detail": "Not Found"}
        key = "prompt" if self.kind == "vllm" else "text"
        return 200, {key: self.spelled or self.tokenizer.decode(body["tokens"])}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    simulated: SimulatedServer

    def do_GET(self):
        self.reply(200, self.simulated.models()) if self.path == "/v1/models" else self.reply(
            404, {}
        )

    def do_POST(self):
        simulated = self.simulated
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with simulated.lock:
            key = self.headers.get("authorization", "")
            simulated.requests.append(Request(self.path, body, key))
            simulated.under_way += 1
            simulated.most_under_way = max(simulated.most_under_way, simulated.under_way)
        try:
            self.answer(body)
        finally:
            with simulated.lock:
                simulated.under_way -= 1

    def answer(self, body):
        simulated = self.simulated
        if self.path == "/detokenize":
            return self.reply(*simulated.detokenize(body))
        fault = simulated.fault()
        if fault == "drop":
            self.close_connection = True
            return self.connection.close()
        if isinstance(fault, int):
            return self.reply(fault, {"error": {"message": f"a fault {SECRET}"}})
        if fault == "meet":
            simulated.meeting.wait(30)
        if fault == "html":
            return self.send(200, b"<html>")
        endpoint = {"/v1/completions": simulated.completions, "/generate": simulated.generate}
        return self.reply(*endpoint[self.path](body), half=fault == "half")

    def reply(self, status, value, half=False):
        content = json.dumps(value).encode()
        self.send(status, content[: len(content) // 2] if half else content, len(content))

    def send(self, status, content, length=None):
        self.send_response(status)
        self.send_header("content-length", str(length or len(content)))
        if status >= 400 and self.simulated.retry_after:
            self.send_header("retry-after", self.simulated.retry_after)
        self.end_headers()
        self.wfile.write(content)
        if length and length > len(content):
            self.close_connection = True

    def log_message(self, *args):
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Whoever gave up asking is no failure of the test; the test looks at the client."""


@pytest.fixture(scope="module")
def teacher(tiny_model, tiny_mixtral):
    """Whose head has no padding; what a server says of that is another test."""
    return tiny_model("mixtral", vocab_size=real_tokens(tiny_mixtral, 512))


@pytest.fixture(scope="module")
def logits(teacher):
    function, lock = teacher_logits(teacher), threading.Lock()

    def one_at_a_time(tokens):
        with lock:
            return function(tokens)

    return one_at_a_time


@pytest.fixture
def serve(teacher, logits, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("EDGEKIT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache_write, "SHARD_TOKENS", 64)
    with contextlib.ExitStack() as running:

        def begin(**options):
            simulated = SimulatedServer(logits, ChatTokenizer(teacher), **options)
            handler = type("SimulatedHandler", (Handler,), {"simulated": simulated})
            server = QuietServer(("127.0.0.1", 0), handler)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            running.callback(server.server_close)
            running.callback(server.shutdown)
            simulated.url = f"http://127.0.0.1:{server.server_port}"
            return simulated

        yield begin


@pytest.fixture
def text(tmp_path):
    rng = np.random.default_rng(0)
    made = [
        TokenSequence(
            rng.integers(3, 400, 12 + i).astype(np.int32), "chat", i % 5 == 4,
            rng.random(12 + i) < 0.7 if i % 2 else None,
        )
        for i in range(12)
    ]  # fmt: skip
    (tmp_path / "text").mkdir()
    write_sequences(tmp_path / "text" / FILE_NAME, made)
    return tmp_path / "text"


async def no_sleep(_seconds):
    pass


def captured(simulated, teacher, text, out, sleep=no_sleep, top_k=TOP_K, **options):
    out.mkdir(exist_ok=True)
    server = Server(simulated.url, options.pop("model", NAME), **options)
    capture_served(teacher, text, server, top_k, out, Silent(), sleep=sleep)
    return LogitCache(out)


def local(teacher, text, out, top_k=TOP_K):
    out.mkdir()
    capture(teacher, text, CaptureOptions("top_k", top_k=top_k), out, Silent())
    return LogitCache(out)


def assert_same(found, expected):
    assert [len(t) for t in map(found.targets, range(12))] == [s.positions for s in found.sequences]
    for number in range(len(expected.sequences)):
        assert np.array_equal(found.sequences[number].tokens, expected.sequences[number].tokens)
        ours, theirs = found.targets(number), expected.targets(number)
        assert torch.equal(ours.ids, theirs.ids)
        torch.testing.assert_close(ours.logprobs, theirs.logprobs, atol=6e-3, rtol=0)
        torch.testing.assert_close(ours.tail, theirs.tail, atol=6e-3, rtol=0)


def refusal(simulated, teacher, text, out, **options):
    with pytest.raises(BadInputError) as caught:
        captured(simulated, teacher, text, out, **options)
    message = str(caught.value)
    assert not list(out.glob("shard-*")) and "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_cache_from_a_server_is_that_of_a_local_capture(kind, serve, teacher, text, tmp_path):
    simulated = serve(kind=kind)
    found = captured(simulated, teacher, text, tmp_path / "served")
    expected = local(teacher, text, tmp_path / "local")
    assert_same(found, expected)
    ours, theirs = found.index.model_dump(), expected.index.model_dump()
    assert ours.pop("teacher") == f"served:{NAME}@{simulated.url.removeprefix('http://')}"
    for name in ("teacher", "training", "held_out"):
        theirs.pop(name)
        ours.pop(name, None)
    assert ours == theirs
    assert (tmp_path / "served" / "tokenizer" / "tokenizer.json").is_file()


def test_weights_are_not_needed(serve, teacher, text, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in teacher.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    found = captured(serve(), bare, text, tmp_path / "served", concurrency=1)
    assert_same(found, local(teacher, text, tmp_path / "local"))


def test_a_sequence_of_one_token_has_what_follows_it(serve, teacher, logits, tmp_path):
    write_sequences(tmp_path / FILE_NAME, [TokenSequence(np.array([7], np.int32), "chat", False)])
    found = captured(serve(), teacher, tmp_path, tmp_path / "served").targets(0)
    expected = top_k_targets(torch.from_numpy(logits(np.array([7], np.int32))), TOP_K)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=6e-3, rtol=0)


def test_faults_in_the_middle_change_nothing(serve, teacher, text, tmp_path):
    simulated = serve(faults={1: 503, 4: 429, 6: 500, 7: "drop", 9: "half", 11: "html"})
    simulated.retry_after = "17"
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    found = captured(simulated, teacher, text, tmp_path / "served", sleep=sleep)
    assert_same(found, local(teacher, text, tmp_path / "local"))
    assert len(pauses) == 6
    assert sum(p == 17 for p in pauses) == 3  # 503, 429 and 500 said it
    assert sum(0.5 <= p <= 4 for p in pauses) == 3  # one may have hit a sequence again
    assert simulated.scored == 1 + 12 + 6


def test_pauses_double_up_to_a_limit_and_a_date_is_waited_for(serve, teacher, text, tmp_path):
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    simulated = serve(lost_after=0)
    with pytest.raises(MissingRuntimeError, match=r"lost after 9 tries \(.*the same command"):
        captured(simulated, teacher, text, tmp_path / "served", sleep=sleep, tries=9)
    limits = [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(pauses) == len(limits)
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, limits))
    pauses.clear()
    simulated = serve(faults={1: 503}, retry_after="Wed, 21 Oct 2099 07:28:00 GMT")
    captured(simulated, teacher, text, tmp_path / "served", sleep=sleep)
    assert pauses == [3600]  # not longer than an hour


def test_a_lost_server_costs_no_finished_shard(serve, teacher, text, tmp_path):
    out = tmp_path / "served"
    simulated = serve(lost_after=8)
    with pytest.raises(MissingRuntimeError, match="what was finished is kept"):
        captured(simulated, teacher, text, out, concurrency=2, tries=2)
    finished = {file.name: file.read_bytes() for file in out.glob("shard-*")}
    assert finished and not (out / INDEX).exists()
    simulated.lost_after = math.inf
    simulated.requests.clear()
    found = captured(simulated, teacher, text, out)
    expected = local(teacher, text, tmp_path / "local")
    assert_same(found, expected)
    shards = [*found.index.training, *found.index.held_out]
    ends = np.cumsum([shard.sequences for shard in shards])
    missing = {
        tuple(sequence.tokens.tolist())
        for shard, end in zip(shards, ends)
        for sequence in found.sequences[end - shard.sequences : end]
        if shard.file not in finished
    }
    asked = {tuple(r.body["prompt"][:-1]) for r in simulated.requests if "prompt" in r.body}
    probe = ChatTokenizer(teacher).encode(PROBES[0])
    assert asked == missing | {tuple(probe[:-1])} and len(missing) < 12
    for name, content in finished.items():
        assert (out / name).read_bytes() == content
    simulated.requests.clear()
    captured(simulated, teacher, text, out)
    assert not simulated.requests  # nothing is missing: the server is not asked at all


def test_a_few_requests_at_once_and_no_more(serve, teacher, text, tmp_path):
    simulated = serve(faults=dict.fromkeys((2, 3, 4), "meet"))
    captured(simulated, teacher, text, tmp_path / "served", concurrency=3)
    assert simulated.most_under_way == 3


def test_requests_begin_at_the_rate_that_is_allowed(serve):
    now = [100.0]
    begun = []

    async def sleep(seconds):
        now[0] += seconds

    async def ask():
        server = Server(serve().url, NAME, requests_per_second=4)
        async with Requests(server, sleep, lambda: now[0]) as requests:
            for _ in range(5):
                await requests.get("/v1/models")
                begun.append(now[0])

    asyncio.run(ask())
    assert begun == [100, 100.25, 100.5, 100.75, 101]


@pytest.mark.parametrize("variable", ["EDGEKIT_API_KEY", "OPENAI_API_KEY"])
def test_the_key_is_sent_and_kept_nowhere(
    variable, serve, teacher, text, tmp_path, monkeypatch, capsys
):
    simulated = serve(faults={3: 418})
    monkeypatch.setenv(variable, SECRET)
    out = tmp_path / "served"
    with pytest.raises(BadInputError, match="refuses a sequence") as caught:
        captured(simulated, teacher, text, out)
    assert SECRET not in str(caught.value)  # though the server said it
    captured(simulated, teacher, text, out)
    assert {request.key for request in simulated.requests} == {f"Bearer {SECRET}"}
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
    assert SECRET not in "".join(capsys.readouterr())


def test_no_key_is_sent_where_there_is_none(serve, teacher, text, tmp_path):
    simulated = serve()
    captured(simulated, teacher, text, tmp_path / "served")
    assert {request.key for request in simulated.requests} == {""}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_logprobs": 5}, "gives 5 tokens.*--top-k 5.*--max-logprobs 20"),
        ({"spelled": "xyz"}, "reads other text in token ids"),
        ({"shift": 500}, "names token .* has 4"),
        ({"kind": "sglang", "shift": 500}, "names token .* has 4"),
        ({"kind": "other"}, "no log-probabilities of prompts.*serve the teacher with vLLM"),
        ({"raw": True}, "probabilities that add up.*raw_logprobs"),
        ({"faults": {1: 401}}, "does not accept the key.*EDGEKIT_API_KEY"),
        ({"max_model_len": 24}, "takes sequences of up to 22 tokens.*one of 23.*sequence_length"),
    ],
)
def test_a_server_that_will_not_do_is_refused(options, reason, serve, teacher, text, tmp_path):
    simulated = serve(**options)
    assert re.search(reason, refusal(simulated, teacher, text, tmp_path / "served"))


def test_another_name_is_refused(serve, teacher, text, tmp_path):
    message = refusal(serve(), teacher, text, tmp_path / "served", model="other")
    assert f"serves no 'other' but '{NAME}'" in message


def test_a_refused_sequence_says_why(serve, teacher, text, tmp_path):
    simulated = serve(max_model_len=None, faults={2: 400})
    message = refusal(simulated, teacher, text, tmp_path / "served")
    assert "refuses a sequence of 12 tokens (400: a fault" in message


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host", "http:// or https://|http://… or https://"),
        ("host:8000", "http://…"),
        (f"http://user:{SECRET}@host", "no user name.*EDGEKIT_API_KEY"),
        (f"http://host?key={SECRET}", "no user name.*EDGEKIT_API_KEY"),
    ],
)
def test_an_address_is_plain_http_without_secrets(url, reason):
    with pytest.raises(BadInputError, match=reason) as caught:
        _ = Server(url, NAME).address
    assert SECRET not in str(caught.value)


def test_v1_in_the_address_is_the_same_server():
    assert Server("https://host:8000/a/v1/", NAME).address == "https://host:8000/a"
    assert Server("https://host:8000/v1", NAME).host == "host:8000"


def test_padding_of_the_head_is_no_outcome():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 40, generator=generator)
    logits[:, 32:] += 2  # rows that pad are often among the most probable
    values, ids = logits.log_softmax(-1).topk(30)
    found = top_targets(ids.numpy(), values.double().numpy(), vocab_size=32, top_k=30)
    real = logits[:, :32].log_softmax(-1)
    mass = torch.logaddexp(found.logprobs.logsumexp(-1), found.tail)
    torch.testing.assert_close(mass, torch.zeros(50), atol=1e-5, rtol=0)
    for row in range(50):
        given = set(ids[row].tolist())
        assert len(set(found.ids[row].tolist())) == 30 and found.ids.max() < 32
        told = torch.tensor([i in given for i in found.ids[row].tolist()])
        exact = real[row, found.ids[row]]
        # what was dropped of the padding is known up to what the answer leaves out
        torch.testing.assert_close(found.logprobs[row][told], exact[told], atol=0.02, rtol=0.01)
        shares = found.logprobs[row][~told]
        untold = 32 - int(told.sum())
        whole_tail = found.tail[row].exp() + shares.exp().sum()
        torch.testing.assert_close(shares.exp(), (whole_tail / untold).expand(len(shares)))


def test_impossible_tokens_have_a_finite_log_probability():
    ids = np.array([[0, 1, 2]])
    found = top_targets(ids, np.array([[-0.1, -9999.0, -np.inf]]), vocab_size=10, top_k=3)
    assert found.logprobs[0].tolist() == pytest.approx([-0.1, -60, -60])
    assert found.tail.exp().item() == pytest.approx(1 - math.exp(-0.1))


def test_the_whole_vocabulary_leaves_no_tail():
    logits = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    values, ids = logits.log_softmax(-1).topk(16)
    found = top_targets(ids.numpy(), values.double().numpy(), 16, 16)
    expected = top_k_targets(logits, 16)
    torch.testing.assert_close(found.logprobs, expected.logprobs)
    torch.testing.assert_close(found.tail, expected.tail)


def test_the_command_makes_the_text_and_the_cache(serve, teacher, tmp_path, capsys):
    (tmp_path / "data.txt").write_text(
        ("The quick brown fox jumps over the lazy dog. " * 20 + "\n\n\n") * 9
    )
    simulated = serve()
    command = ["distill", "capture", str(teacher), "--out", str(tmp_path / "cache")]
    data = ["--data", str(tmp_path / "data.txt"), "--tokens", "200", "--held-out-tokens", "60"]
    size = ["--sequence-length", "32", "--top-k", str(TOP_K)]
    where = ["--server", f"{simulated.url}/v1", "--served-model", NAME]
    assert main([*command, *data, *size, *where]) == 0
    assert "positions" in capsys.readouterr().out
    cache = LogitCache(tmp_path / "cache")
    assert cache.index.top_k == TOP_K and cache.index.training and cache.index.held_out
    assert not list(tmp_path.glob(".cache*"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--served-model", NAME], "--data"), (["--data", "x.txt"], "--served-model")],
)
def test_the_command_says_what_is_missing(options, reason, teacher, tmp_path, capsys):
    command = ["distill", "capture", str(teacher), "--out", str(tmp_path / "cache")]
    assert main([*command, "--server", "http://127.0.0.1:9", *options]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_served_teacher_corrects_what_a_student_writes(teacher, logits, serve, kind):
    simulated = serve(kind=kind)
    rng = np.random.default_rng(4)
    written = [
        TokenSequence(
            rng.integers(3, 400, 9 + i).astype(np.int32), "a", False, rng.random(9 + i) < 0.5
        )
        for i in range(5)
    ]
    score = served_scorer(teacher, Server(simulated.url, NAME), TOP_K)
    for sequence, found in zip(written, score(written), strict=True):
        rows = torch.from_numpy(logits(sequence.tokens))[sequence.counted]
        expected = top_k_targets(rows, TOP_K)
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.tail, expected.tail, atol=1e-3, rtol=1e-3)
    assert score([]) == []
    with pytest.raises(BadInputError, match="wrote one of 9; lower new_tokens"):
        served_scorer(teacher, Server(serve(max_model_len=9).url, NAME), TOP_K)(written[:1])

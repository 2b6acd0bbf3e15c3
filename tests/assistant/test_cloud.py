"""What leaves for a cloud model is what was previewed, once, by consent, and never the key."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import os
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cloud import FakeCloud, events, failing, send, streamed

from edgekit.assistant.cloud import Cloud, CloudMessage
from edgekit.assistant.cloud_answer import AnswerLimits
from edgekit.assistant.key_store import KeyStore
from edgekit.assistant.policy import Policy
from edgekit.errors import BadInputError, MissingRuntimeError

KEY = "test-key-5f2a9c1e"
MESSAGES = [
    CloudMessage("system", "Be brief.", "instructions"),
    CloudMessage("user", "给 li@example.cn 写信，电话13812345678 \ud800", "you"),
]


@pytest.fixture
def fake() -> Iterator[FakeCloud]:
    with FakeCloud() as server:
        yield server


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(tmp_path: Path, policy: Policy = Policy(), **options: Any) -> Cloud:  # noqa: B008
    keys = KeyStore(tmp_path / "cloud-key.json", keyring=options.pop("keyring", NoKeyring()))
    return Cloud(tmp_path / "cloud.json", tmp_path / "log.jsonl", policy, keys, **options)


class NoKeyring:
    """A keyring that refuses, as one without a session does."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no keyring here")


def configured(tmp_path: Path, fake: FakeCloud, **options: Any) -> Cloud:
    cloud = make(tmp_path, **options)
    cloud.set("Teacher", fake.url, "big-model", KEY)
    return cloud


def read(cloud: Cloud, preview_id: str) -> str:
    async def collect() -> str:
        return "".join([text async for text in cloud.send(preview_id)])

    return asyncio.run(collect())


def test_nothing_is_configured_and_nothing_can_be_sent_at_first(tmp_path: Path) -> None:
    cloud = make(tmp_path)
    assert cloud.configured() is None
    with pytest.raises(BadInputError, match="no cloud model is configured"):
        cloud.preview(MESSAGES)
    assert cloud.log() == []


def test_bytes_received_are_the_bytes_previewed(tmp_path: Path, fake: FakeCloud) -> None:
    cloud = configured(tmp_path, fake)
    preview = cloud.preview(MESSAGES)
    assert fake.requests == []  # a preview sends nothing
    assert read(cloud, preview.id) == "Hello there"
    [(path, headers, body)] = fake.requests
    assert path == "/v1/chat/completions"
    assert body == preview.body
    assert preview.sha256 == hashlib.sha256(body).hexdigest() and preview.size == len(body)
    assert headers.pop("authorization") == f"Bearer {KEY}"
    shown = dict(preview.headers)
    assert shown.pop("authorization") == "Bearer ••••"
    assert headers == shown  # nothing was added on the way


def test_redacted_body_holds_placeholders_and_the_answer_the_values(
    tmp_path: Path, fake: FakeCloud
) -> None:
    cloud = configured(tmp_path, fake)
    fake.answer = streamed("Dear [EMA", "IL_1], call [PHONE_1] or [PHONE_2] [", "x]")
    preview = cloud.preview(MESSAGES)
    assert {r.kind: r.count for r in preview.redactions} == {"EMAIL": 1, "PHONE": 1}
    assert "li@example.cn" not in preview.body.decode()
    answer = read(cloud, preview.id)
    assert answer == "Dear li@example.cn, call 13812345678 or [PHONE_2] [x]"
    sent = json.loads(fake.requests[0][2])
    assert sent == {
        "model": "big-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "给 [EMAIL_1] 写信，电话[PHONE_1] \ufffd"},
        ],
        "stream": True,
    }
    assert [(p.part, p.text) for p in preview.parts] == [
        ("instructions", "Be brief."),
        ("you", sent["messages"][1]["content"]),
    ]


def test_without_redaction_the_text_leaves_as_it_is_and_the_findings_are_told(
    tmp_path: Path, fake: FakeCloud
) -> None:
    cloud = configured(tmp_path, fake)
    preview = cloud.preview(MESSAGES, redact=False)
    assert preview.redactions == ()
    assert [(r.kind, r.count) for r in preview.found] == [("EMAIL", 1), ("PHONE", 1)]
    assert "li@example.cn" in preview.body.decode()


def test_preview_can_be_sent_once(tmp_path: Path, fake: FakeCloud) -> None:
    cloud = configured(tmp_path, fake)
    preview = cloud.preview(MESSAGES)
    read(cloud, preview.id)
    with pytest.raises(BadInputError, match="sent already"):
        cloud.send(preview.id)
    assert len(fake.requests) == 1


def test_preview_expires_after_ten_minutes(tmp_path: Path, fake: FakeCloud) -> None:
    clock = Clock()
    cloud = configured(tmp_path, fake, clock=clock)
    early, late = cloud.preview(MESSAGES), cloud.preview(MESSAGES)
    clock.now += 599
    assert read(cloud, early.id) == "Hello there"
    clock.now += 2
    with pytest.raises(BadInputError, match="ten minutes"):
        cloud.send(late.id)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("change", ["model", "address", "cleared"])
def test_change_of_the_configuration_makes_a_preview_void(
    tmp_path: Path, fake: FakeCloud, change: str
) -> None:
    cloud = configured(tmp_path, fake)
    preview = cloud.preview(MESSAGES)
    with FakeCloud() as other:
        if change == "model":
            cloud.set("Teacher", fake.url, "other-model")
        elif change == "address":
            cloud.set("Teacher", other.url, "big-model")
        else:
            cloud.clear()
        with pytest.raises(BadInputError):
            cloud.send(preview.id)
        assert other.requests == []
    assert fake.requests == []


def test_key_does_not_go_to_another_address(tmp_path: Path, fake: FakeCloud) -> None:
    cloud = configured(tmp_path, fake)
    cloud.set("Teacher", fake.url + "/beta", "big-model")
    assert cloud.has_key()  # the same host and port
    with FakeCloud() as other:
        cloud.set("Teacher", other.url, "big-model")
        assert not cloud.has_key()
        read(cloud, cloud.preview(MESSAGES).id)
        assert "authorization" not in other.requests[0][1]
        assert KEY not in (tmp_path / "cloud.json").read_text()
    cloud.set("Teacher", fake.url, "big-model")
    assert not cloud.has_key()  # it was forgotten, not kept for a return


def test_key_stays_when_the_address_is_changed_in_the_file(tmp_path: Path, fake: FakeCloud) -> None:
    configured(tmp_path, fake)
    path = tmp_path / "cloud.json"
    with FakeCloud() as other:
        path.write_text(path.read_text().replace(fake.url, other.url))
        cloud = make(tmp_path)
        assert not cloud.has_key()
        read(cloud, cloud.preview(MESSAGES).id)
        assert "authorization" not in other.requests[0][1]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_not_followed(tmp_path: Path, fake: FakeCloud, status: int) -> None:
    with FakeCloud() as target:
        location = target.url + "/chat/completions"
        fake.answer = lambda handler: send(handler, status, "text/plain", b"", Location=location)
        cloud = configured(tmp_path, fake)
        with pytest.raises(MissingRuntimeError, match=r"redirects to 127\.0\.0\.1, which is not"):
            read(cloud, cloud.preview(MESSAGES).id)
        assert target.requests == []


def test_key_is_in_no_error_no_preview_no_log_and_no_configuration(
    tmp_path: Path, fake: FakeCloud
) -> None:
    fake.answer = failing(401, f"Incorrect API key provided: {KEY}\nsk-proj-abcdEFGH1234ijkl")
    cloud = configured(tmp_path, fake)
    preview = cloud.preview(MESSAGES)
    with pytest.raises(MissingRuntimeError, match="answered 401: Incorrect API key") as caught:
        read(cloud, preview.id)
    seen = [str(caught.value), repr(preview), repr(cloud.log()), repr(cloud.configured())]
    seen += [(tmp_path / name).read_text() for name in ("cloud.json", "log.jsonl")]
    assert not any(KEY in text or "sk-proj" in text for text in seen)
    assert "\n" not in str(caught.value)


def test_log_tells_what_left_without_the_text(tmp_path: Path, fake: FakeCloud) -> None:
    cloud = configured(tmp_path, fake)
    first = cloud.preview(MESSAGES)
    read(cloud, first.id)
    fake.answer = failing(503, "overloaded")
    second = cloud.preview(MESSAGES, redact=False)
    with pytest.raises(MissingRuntimeError):
        read(cloud, second.id)
    newest, oldest = make(tmp_path).log()
    assert (oldest.outcome, oldest.sha256, oldest.bytes) == ("answered", first.sha256, first.size)
    assert (oldest.host, oldest.model, oldest.answer_bytes) == ("127.0.0.1", "big-model", 11)
    assert {r.kind: r.count for r in oldest.redactions} == {"EMAIL": 1, "PHONE": 1}
    assert "answered 503: overloaded" in newest.outcome and newest.redactions == ()
    datetime.datetime.fromisoformat(newest.time)
    text = (tmp_path / "log.jsonl").read_text()
    assert not any(word in text for word in ("li@example", "13812345678", "Be brief", "Hello"))


def test_nothing_is_sent_when_the_log_cannot_be_written(tmp_path: Path, fake: FakeCloud) -> None:
    cloud = configured(tmp_path, fake)
    (tmp_path / "log.jsonl").mkdir()
    preview = cloud.preview(MESSAGES)
    with pytest.raises(Exception, match=r"log\.jsonl"):
        read(cloud, preview.id)
    assert fake.requests == []


def test_stopping_closes_the_connection_and_is_logged(tmp_path: Path, fake: FakeCloud) -> None:
    gone = threading.Event()

    def endless(handler: Any) -> None:
        send(handler, 200, "text/event-stream", b"")
        try:
            while True:
                handler.wfile.write(next(events("more ")))
        except OSError:
            gone.set()

    fake.answer = endless
    cloud = configured(tmp_path, fake)
    preview = cloud.preview(MESSAGES)

    async def stop_early() -> None:
        stream = cloud.send(preview.id)
        assert await anext(stream) == "more "
        await stream.aclose()

    asyncio.run(stop_early())
    assert gone.wait(10)
    assert cloud.log()[0].outcome == "stopped"


def test_answer_that_is_not_streamed_is_read_too(tmp_path: Path, fake: FakeCloud) -> None:
    body = json.dumps({"choices": [{"message": {"content": "whole 答案"}}]}).encode()
    fake.answer = lambda handler: send(handler, 200, "application/json; charset=utf-8", body)
    cloud = configured(tmp_path, fake)
    assert read(cloud, cloud.preview(MESSAGES).id) == "whole 答案"


SMALL = AnswerLimits(total_bytes=20_000, line_bytes=5_000, silence_seconds=0.3)
LONG = [b"data: " + b"x" * 50 + b"\n"] * 1000
MISBEHAVIOURS = {
    "too much": (b"".join(LONG), "more than 20000 bytes"),
    "endless line": (b"data: " + b"x" * 9_000, "a line of more than 5000 bytes"),
    "cut off": (b"".join(events("half", end=False)), "ended in the middle"),
    "no JSON": (b"data: {nonsense\n\n", "not JSON"),
    "no object": (b"data: [1]\n\n", "no JSON object"),
    "an error inside": (b'data: {"error":{"message":"over quota"}}\n\n', "broke off: over quota"),
    "deep": (b"data: " + b"[" * 4_000 + b"\n\n", "not JSON"),
}


@pytest.mark.parametrize("kind", MISBEHAVIOURS)
def test_misbehaving_answer_ends_in_one_sentence(
    tmp_path: Path, fake: FakeCloud, kind: str
) -> None:
    body, sentence = MISBEHAVIOURS[kind]
    if kind == "too much":
        body = body.replace(b"x" * 50, b'{"choices":[]}')
    fake.answer = lambda handler: send(handler, 200, "text/event-stream", body)
    cloud = configured(tmp_path, fake, limits=SMALL)
    with pytest.raises(MissingRuntimeError, match=sentence) as caught:
        read(cloud, cloud.preview(MESSAGES).id)
    assert "\n" not in str(caught.value) and cloud.log()[0].outcome == str(caught.value)


def test_silent_host_is_given_up(tmp_path: Path, fake: FakeCloud) -> None:
    release = threading.Event()
    fake.answer = lambda handler: release.wait(30)  # type: ignore[assignment, return-value]
    cloud = configured(tmp_path, fake, limits=SMALL)
    try:
        with pytest.raises(MissingRuntimeError, match="did not answer in time"):
            read(cloud, cloud.preview(MESSAGES).id)
    finally:
        release.set()


def test_compressed_answer_is_refused_unpacked(tmp_path: Path, fake: FakeCloud) -> None:
    fake.answer = lambda handler: send(
        handler, 200, "application/json", b"\x1f\x8b", Content_Encoding="gzip"
    )
    cloud = configured(tmp_path, fake)
    with pytest.raises(MissingRuntimeError, match="compressed"):
        read(cloud, cloud.preview(MESSAGES).id)


def test_host_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with FakeCloud() as gone:
        pass
    cloud = configured(tmp_path, gone)
    with pytest.raises(MissingRuntimeError, match="cannot be reached") as caught:
        read(cloud, cloud.preview(MESSAGES).id)
    assert cloud.log()[0].outcome == str(caught.value)


def test_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_self_signed(tmp_path))
    with FakeCloud(context=context) as server:
        cloud = configured(tmp_path, server)
        with pytest.raises(MissingRuntimeError, match="CERTIFICATE_VERIFY_FAILED"):
            read(cloud, cloud.preview(MESSAGES).id)
        assert server.requests == []


def _self_signed(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "server.pem"
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


def test_proxy_of_the_environment_is_used_only_when_wanted(
    tmp_path: Path, fake: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects: list[str] = []

    def refuse(handler: Any) -> None:
        connects.append(handler.path)
        send(handler, 502, "text/plain", b"")

    with FakeCloud() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        handler = proxy._server.RequestHandlerClass
        handler.do_CONNECT = refuse  # type: ignore[attr-defined]
        cloud = configured(tmp_path, fake)
        assert read(cloud, cloud.preview(MESSAGES).id) == "Hello there"  # http here: direct
        for proxies in (False, True):
            cloud.set("T", "https://cloud.invalid/v1", "m", proxies=proxies)
            with pytest.raises(MissingRuntimeError, match="cannot be reached"):
                read(cloud, cloud.preview(MESSAGES).id)
            assert connects == (["cloud.invalid:443"] if proxies else [])
        assert proxy.requests == []


BAD_ADDRESSES = [
    "http://api.example.com/v1",
    "http://127.0.0.1.example.com/v1",
    "http://localhost.example.com",
    "http://10.0.0.1/v1",
    "ftp://example.com",
    "file:///etc/passwd",
    "https://user:pass@example.com/v1",
    "https://example.com/v1?key=1",
    "https://example.com/v1#x",
    "https://",
    "example.com/v1",
    "",
    "javascript:alert(1)",
    "https://exa mple.com",
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_address_that_words_may_not_go_to_is_refused(tmp_path: Path, address: str) -> None:
    cloud = make(tmp_path)
    with pytest.raises(BadInputError, match="cloud:"):
        cloud.set("T", address, "m", KEY)
    assert cloud.configured() is None and list(tmp_path.iterdir()) == []


def test_look_alike_host_is_shown_in_its_ascii_spelling(tmp_path: Path) -> None:
    config = make(tmp_path).set(
        "T", "https://аpi.example.com/v1/chat/completions", "m"
    )  # Cyrillic а
    assert config.host == "xn--pi-6kc.example.com"
    assert config.url == "https://xn--pi-6kc.example.com/v1/chat/completions"


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "héllo", "x" * 5000])
def test_key_that_could_break_a_header_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadInputError, match="key"):
        make(tmp_path).set("T", "https://example.com", "m", key)


def test_policy_is_held_at_every_step(tmp_path: Path, fake: FakeCloud) -> None:
    open_cloud = configured(tmp_path, fake)
    assert read(open_cloud, open_cloud.preview(MESSAGES).id) == "Hello there"
    forbidden = make(tmp_path, Policy(cloud="forbidden", source="/etc/p.json"))
    assert forbidden.configured() is not None  # what was configured before
    for act in (
        lambda: forbidden.preview(MESSAGES),
        lambda: forbidden.set("T", fake.url, "m"),
    ):
        with pytest.raises(BadInputError, match="owner of this machine forbids cloud"):
            act()
    preview = open_cloud.preview(MESSAGES)
    open_cloud._policy = forbidden._policy  # it was tightened after the preview
    with pytest.raises(BadInputError, match="owner"):
        open_cloud.send(preview.id)
    elsewhere = make(tmp_path, Policy(cloud_hosts=("*.corp.example",), source="p"))
    with pytest.raises(BadInputError, match=r"allowed: \*\.corp\.example"):
        elsewhere.preview(MESSAGES)
    assert len(fake.requests) == 1


def test_damaged_configuration_is_told_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "cloud.json"
    path.write_text('{"version": 1, "name": "T", "base_url": "http://evil.example", "model": "m"}')
    cloud = make(tmp_path)
    assert cloud.configured() is None and "cannot be read" in cloud.problem
    with pytest.raises(BadInputError, match="cannot be read"):
        cloud.preview(MESSAGES)
    before = path.read_text()
    cloud.set("T", "https://example.com", "m")
    assert (tmp_path / "cloud.json.damaged-0").read_text() == before
    assert cloud.problem == "" and make(tmp_path).configured() == cloud.configured()


@pytest.mark.skipif(os.name != "posix", reason="mode bits")
def test_files_are_readable_by_their_owner_alone(tmp_path: Path, fake: FakeCloud) -> None:
    cloud = configured(tmp_path, fake)
    read(cloud, cloud.preview(MESSAGES).id)
    for name in ("cloud.json", "cloud-key.json", "log.jsonl"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name


class Keyring:
    """A keyring in memory."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, name: str) -> str | None:
        return self.held.get((service, name))

    def set_password(self, service: str, name: str, value: str) -> None:
        self.held[service, name] = value

    def delete_password(self, service: str, name: str) -> None:
        del self.held[service, name]


def test_key_lies_in_the_keyring_where_there_is_one(tmp_path: Path, fake: FakeCloud) -> None:
    keyring = Keyring()
    cloud = configured(tmp_path, fake, keyring=keyring)
    assert list(keyring.held.values()) == [KEY]
    assert not (tmp_path / "cloud-key.json").exists()
    read(cloud, cloud.preview(MESSAGES).id)
    assert fake.requests[0][1]["authorization"] == f"Bearer {KEY}"
    cloud.clear()
    assert keyring.held == {} and not (tmp_path / "cloud.json").exists()


def test_oldest_previews_are_forgotten(tmp_path: Path, fake: FakeCloud) -> None:
    cloud = configured(tmp_path, fake)
    previews = [cloud.preview(MESSAGES) for _ in range(9)]
    with pytest.raises(BadInputError):
        cloud.send(previews[0].id)
    assert read(cloud, previews[1].id) == "Hello there"


def test_huge_message_is_refused_before_it_is_kept(tmp_path: Path, fake: FakeCloud) -> None:
    cloud = configured(tmp_path, fake)
    with pytest.raises(BadInputError, match="send less"):
        cloud.preview([CloudMessage("user", "字" * 2_000_000, "you")])

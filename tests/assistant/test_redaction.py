"""What is replaced before a text leaves, what only looks like it, and the way back."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.assistant.redaction import Redaction, Redactor, Restorer, restore
from edgekit.assistant.sensitive import find_sensitive

# (text, what of it is sensitive, its kind)
POSITIVES = [
    ("To zhang.san+news@mail.example.com, please.", "zhang.san+news@mail.example.com", "EMAIL"),
    ("邮箱是li_wei@example.cn，谢谢", "li_wei@example.cn", "EMAIL"),
    ("邮箱：ｌｉ＠ｅｘａｍｐｌｅ．ｃｎ。", "ｌｉ＠ｅｘａｍｐｌｅ．ｃｎ", "EMAIL"),
    ("mailto:a.b@sub.example.co.uk.", "a.b@sub.example.co.uk", "EMAIL"),
    ("我的手机号13812345678，请联系", "13812345678", "PHONE"),
    ("电话：138 1234 5678", "138 1234 5678", "PHONE"),
    ("微信同号 139-1234-5678。", "139-1234-5678", "PHONE"),
    ("手机１３８１２３４５６７８", "１３８１２３４５６７８", "PHONE"),
    ("+86 138 1234 5678 打给我", "+86 138 1234 5678", "PHONE"),
    ("座机 010-62345678 转 8", "010-62345678", "PHONE"),
    ("传真(021) 62345678", "(021) 62345678", "PHONE"),
    ("call +44 20 7946 0958 today", "+44 20 7946 0958", "PHONE"),
    ("call +1 (415) 555-0132.", "+1 (415) 555-0132", "PHONE"),
    ("My number (415) 555-0132, evenings", "(415) 555-0132", "PHONE"),
    ("dial 0049 30 901820 now", "0049 30 901820", "PHONE"),
    ("身份证号11010519491231002X。", "11010519491231002X", "ID"),
    ("ID 440524188001010014 on file", "440524188001010014", "ID"),
    ("card 4111 1111 1111 1111 12/29", "4111 1111 1111 1111", "CARD"),
    ("Visa 4012888888881881.", "4012888888881881", "CARD"),
    ("amex 3782 822463 10005", "3782 822463 10005", "CARD"),
    ("银行卡6222020200112233446的余额", "6222020200112233446", "CARD"),
    ("卡号 5500-0055-5555-5559", "5500-0055-5555-5559", "CARD"),
    ("IBAN DE89 3704 0044 0532 0130 00 please", "DE89 3704 0044 0532 0130 00", "IBAN"),
    ("pay GB82WEST12345698765432.", "GB82WEST12345698765432", "IBAN"),
    ("账号NL91ABNA0417164300，", "NL91ABNA0417164300", "IBAN"),
    ("ssh root@x at 192.168.1.20:22", "192.168.1.20", "IP"),
    ("服务器10.1.2.3连不上", "10.1.2.3", "IP"),
    ("ping fd12:3456:789a::1 fails", "fd12:3456:789a::1", "IP"),
    ("fe80::1ff:fe23:4567:890a%eth0 is up", "fe80::1ff:fe23:4567:890a%eth0", "IP"),
    ("open /home/zhangsan/taxes/2025.pdf", "zhangsan", "USER"),
    ("在 /Users/李雷/文档 里", "李雷", "USER"),
    (r"C:\Users\Zhang San\Desktop\a.txt", "Zhang San", "USER"),
    ("C:\\\\Users\\\\li\\\\x.json", "li", "USER"),
    ("file:///home/maria/x", "maria", "USER"),
    ("key sk-proj-abcdEFGH1234ijklMNOP5678 ok", "sk-proj-abcdEFGH1234ijklMNOP5678", "KEY"),
    ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "KEY"),
    ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE", "KEY"),
    ("密钥LTAI5tQnKxVwYzAb3cDeFgHi在此", "LTAI5tQnKxVwYzAb3cDeFgHi", "KEY"),
    ("password: hunter2!", "hunter2!", "KEY"),
    ("密码是Abc12345。", "Abc12345", "KEY"),
    ('"api_key": "a1b2c3d4e5f6"', "a1b2c3d4e5f6", "KEY"),
    ("Authorization: Bearer abc.DEF-123_456", "abc.DEF-123_456", "KEY"),
    ("postgres://admin:s3cr3t@db/x", "s3cr3t", "KEY"),
    ("value Zx9Qm2Lr7Tb4Wk8Vn3Hd6Pc1 set", "Zx9Qm2Lr7Tb4Wk8Vn3Hd6Pc1", "KEY"),
]  # fmt: skip

NEGATIVES = [
    "git clone git@github.com:org/project.git",
    "use @app.route and @types/node, or pkg@1.2.3",
    "订单号12345678901，金额0.13812345678元",
    "1699999999999 is a time in milliseconds, 1699999999 in seconds",
    "圆周率3.14159265358979，日期2024-11-24，ISBN 978-7-111-12345-6",
    "see RFC 2119, port 8080, 1,234,567,890 bytes, 2024-2025",
    "身份证号110105194912310021是错的",  # the last digit does not fit
    "440524199902300010",  # the 30th of February
    "order 4111 1111 1111 1112",  # Luhn fails
    "IMEI 490154203237518",  # Luhn holds, but no scheme issues 15 digits from 49
    "tracking 1234567812345670",  # Luhn holds, no scheme
    "DE88 3704 0044 0532 0130 00 is mistyped",
    "8.8.8.8 and 127.0.0.1 and ::1 and 2001:db8::1",
    "version 10.0.0.1, v10.2.3.4, 版本10.1.2.3, Windows 10.0.19045.3803",
    "at 12:30:45, ratio 16:9, std::vector, face:b00c",
    "/home/ and /Users/Shared/x and C:\\Users\\Public\\x and https://example.com/home/feed",
    "commit 9d4c96b8a7f6e5d4c3b2a190817263544f5e6d7c",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "id 123e4567-e89b-12d3-a456-426614174000",
    "the getUserAccountInformationFromDatabase2 function and MAX_CONTEXT_LENGTH_IN_TOKENS_V2",
    "tokenizer.json, tokenizer_config2.json, max_tokens: 4096, token = get_token2()",
    "The password is required. The secret: never tell. 密码是什么？请输入密码以继续",
    "sk-learn and sk-image are not keys; aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "深圳市南山区科技园路1号，邮编518057",
]


@pytest.mark.parametrize(("text", "secret", "kind"), POSITIVES)
def test_sensitive_value_is_found_exactly(text: str, secret: str, kind: str) -> None:
    found = [(text[f.start : f.end], f.kind) for f in find_sensitive(text)]
    assert found == [(secret, kind)]


@pytest.mark.parametrize("text", NEGATIVES)
def test_look_alike_is_left_alone(text: str) -> None:
    assert [text[f.start : f.end] for f in find_sensitive(text)] == []


def test_random_tokens_are_found_and_random_identifiers_are_not() -> None:
    draw = random.Random(7)
    alphabet = string.ascii_letters + string.digits
    tokens = ["".join(draw.choices(alphabet, k=32)) for _ in range(400)]
    assert sum(not find_sensitive(f"value {token} end") for token in tokens) <= 24  # 3 % expected
    words = ["Get", "Set", "User", "Name", "Index", "Cache", "Path", "Layer", "Io", "Id", "To"]
    names = ["".join(draw.choices(words, k=8)) + "2024" for _ in range(400)]
    assert [name for name in names if find_sensitive(name)] == []


def test_private_key_block_is_one_finding() -> None:
    block = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----"
    text = f"look:\n{block}\nthanks"
    assert Redactor([text]).redact(text) == "look:\n[KEY_1]\nthanks"


def test_same_value_has_the_same_placeholder_in_every_message() -> None:
    first, second = "a@x.com and b@x.com", "again b@x.com, 手机13812345678"
    redactor = Redactor([first, second])
    assert redactor.redact(first) == "[EMAIL_1] and [EMAIL_2]"
    assert redactor.redact(second) == "again [EMAIL_2], 手机[PHONE_1]"
    assert redactor.counts() == (Redaction("EMAIL", 3), Redaction("PHONE", 1))


def test_placeholder_that_the_person_wrote_is_not_given_to_a_value() -> None:
    text = "what does [EMAIL_1] mean? ask li@x.com"
    redactor = Redactor([text])
    assert redactor.redact(text) == "what does [EMAIL_1] mean? ask [EMAIL_2]"
    assert restore("[EMAIL_1] [EMAIL_2]", redactor.originals()) == "[EMAIL_1] li@x.com"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_streamed_answer_is_restored_wherever_the_pieces_are_cut(data: st.DataObject) -> None:
    originals = {"[EMAIL_1]": "li@x.com", "[PHONE_12]": "13812345678"}
    parts = ["[EMAIL_1]", "[PHONE_12]", "[", "[x]", "[EMAIL_", "[KEY_9]", "文字", "] ", "a[1]"]
    answer = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=12)))
    restorer, shown, left = Restorer(originals), "", answer
    while left:
        size = data.draw(st.integers(1, 5))
        shown += restorer.push(left[:size])
        left = left[size:]
    assert shown + restorer.finish() == restore(answer, originals)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([p[1] for p in POSITIVES] + [", ", "。", "\n", " x "]), max_size=9))
def test_redaction_can_be_taken_back(parts: list[str]) -> None:
    text = "".join(parts)
    redactor = Redactor([text])
    assert restore(redactor.redact(text), redactor.originals()) == text


@pytest.mark.parametrize(
    "piece",
    [
        "a" * 500,
        "1" * 500,
        "+1 " + "2" * 60,
        "a@",
        "A0" * 20,
        ":" * 50,
        "/home/",
        "1.1.",
        "sk-",
        "eyJ",
    ],
)
def test_huge_paste_takes_time_in_proportion(piece: str) -> None:
    """Not timed: a pattern that backtracks for ever would hang here."""
    find_sensitive(piece * (200_000 // len(piece)))

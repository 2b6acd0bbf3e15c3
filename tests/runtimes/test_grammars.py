"""Grammars: what the rules allow, who follows them, and what is refused with which sentence."""

import json
import tempfile
from pathlib import Path

import numpy as np
import openvino_genai
import pytest

from edgekit.errors import BadInputError
from edgekit.runtimes.batching import Grammar, Job, Tag
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.guidance import GrammarCompiler
from edgekit.runtimes.json_rules import JsonRules
from edgekit.runtimes.load_batching import load_batch_engine
from edgekit.runtimes.openvino_grammars import structured_output
from edgekit.runtimes.openvino_vocabulary import GrammarTrial, write_detokenizer
from edgekit.runtimes.token_bytes import token_bytes
from edgekit.text import ChatTokenizer

LETTERS = [*map(chr, range(32, 127)), "\n", "中"]
# a few whole words, and end, quote and brackets many times, so that random answers come to an end
SPELLINGS = [*LETTERS, "true", "null", '":', *['"'] * 40, *["}"] * 40, *["]"] * 40]
VOCABULARY = [b"", *(text.encode() for text in SPELLINGS)]
END = 0


class Alphabet:
    """A tokenizer of single characters, as far as a grammar needs one."""

    end_tokens = frozenset({END})

    def encode(self, text):
        return [1 + SPELLINGS.index(character) for character in text]


@pytest.fixture(scope="module")
def trial():
    """XGrammar over the small vocabulary, every allowed token as likely as any other."""
    with tempfile.TemporaryDirectory() as name:
        write_detokenizer(Path(name), VOCABULARY, END)
        tokenizer = openvino_genai.Tokenizer(name)
        yield GrammarTrial(openvino_genai, tokenizer, len(VOCABULARY), {END})


@pytest.fixture(scope="module")
def compiler():
    return GrammarCompiler(VOCABULARY, Alphabet())


def accepts(compiler, grammar, text):
    """Whether llguidance lets exactly ``text`` be an answer."""
    guide = compiler.guide(grammar)
    for token in Alphabet().encode(text):
        if not guide.allowed()[token]:
            return False
        guide.accept(token)
    return bool(guide.allowed()[END])


def written(trial, grammar, seed):
    """A random answer that XGrammar lets a model write; None where it came to no end."""
    tokens = trial.answer(structured_output(openvino_genai, grammar), 300, seed)
    if tokens[-1] != END:
        return None
    return b"".join(VOCABULARY[t] for t in tokens).decode()


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "age": {"type": ["integer", "null"]},
        "kind": {"enum": ["a\"b", "中", 3, True], "type": "string"},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "tags"],
}  # fmt: skip
SCHEMAS = {
    "person": PERSON,
    "number": {"type": "number"},
    "any": {},
    "object": {"type": "object"},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "tree": {"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "required": ["next"],
             "properties": {"next": {"anyOf": [{"$ref": "#/$defs/t"}, {"type": "null"}]}}}}},
    "either": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}},
               "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "both": {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}},
                       {"properties": {"b": {"const": {"x": [1, "y"]}}}, "required": ["b"]}]},
    "optional": {"type": "object", "properties": {k: {"type": "boolean"} for k in "abc"},
                 "required": ["b"], "additionalProperties": False},
    "empty": {"type": "object", "additionalProperties": False},
    "pairs": {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2}},
    "forbidden": {"type": "object", "properties": {"a": {"type": "null"}, "b": False}},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_our_rules_let_xgrammar_write_is_what_the_schema_allows(trial, compiler, name):
    """llguidance, which converts schemas by itself, is the judge."""
    grammar = Grammar(schema=SCHEMAS[name])
    answers = {written(trial, grammar, seed) for seed in range(12)} - {None}
    assert answers
    for answer in answers:
        json.loads(answer)
        assert accepts(compiler, grammar, answer.strip()), answer


def test_rules_reach_every_combination_of_optional_properties(trial):
    grammar = Grammar(schema=SCHEMAS["optional"])
    answers = [written(trial, grammar, seed) for seed in range(400)]
    assert {tuple(json.loads(a)) for a in answers if a} == {
        ("b",), ("a", "b"), ("b", "c"), ("a", "b", "c")
    }  # fmt: skip


@pytest.mark.parametrize(
    "schema",
    [{"type": "integer", "minimum": 3}, {"type": "string", "pattern": "^a+$"}, {"not": {}},
     {"type": "array", "uniqueItems": True}, {"type": "object", "minProperties": 1},
     {"anyOf": [{"type": "string", "maxLength": 3}]}, {"type": "string", "format": "date"}],
)  # fmt: skip
def test_keywords_that_rules_cannot_spell_are_noticed(schema):
    rules = JsonRules()
    rules.add({"type": "object", "properties": {"x": schema}})
    assert rules.ignored
    assert structured_output(openvino_genai, Grammar(schema=schema)) is None


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"type": "text"}, "the type 'text'"),
        ({"$ref": "#/nowhere"}, r"'#/nowhere', which it does not contain"),
        ({"$ref": "https://example.com/x.json"}, "put it under"),
        ({"$ref": "#"}, "in a circle"),
        ({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}, "in a circle"),
        ({"allOf": [{"$ref": "#"}]}, "in a circle"),
        (False, "allows no value"),
        ({"enum": [1], "type": "string"}, "without a value of its type"),
        ({"type": "object", "properties": [1]}, "is not one"),
        ({"type": "array", "minItems": "x"}, "is not one"),
        ({"enum": 5}, "is not one"),
        (7, "is an object"),
    ],
)
def test_what_is_no_schema_is_refused_with_a_sentence(schema, sentence):
    with pytest.raises(BadInputError, match=sentence):
        JsonRules().add(schema)


def test_a_deep_or_huge_schema_is_refused_and_not_followed_into_the_ground():
    deep: dict = {}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    huge = {"type": "object", "properties": {f"p{i}": {"enum": ["x"]} for i in range(9000)}}
    for schema in (deep, huge):
        with pytest.raises(BadInputError, match=r"deeper|too large"):
            JsonRules().add(schema)


WEATHER = Tag('<call>{"name": "weather", "arguments": ',
              {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}},
               "required": ["unit"]}, "}</call>")  # fmt: skip
NOW = Tag('<call>{"name": "now", "arguments": ', {"type": "object", "properties": {}}, "}</call>")
W = '<call>{"name": "weather", "arguments": {"unit": "C"}}</call>'
N = '<call>{"name": "now", "arguments": {}}</call>'


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        ({"required": True}, [W, N, W + N, W + "\n" + N], ["", "hi", "hi " + W, W + "hi"]),
        ({"required": True, "single": True}, [W, N], ["", W + N]),
        ({}, ["", "hi", "hi " + W, W + N + " and", "<cal"], ["<call>{}", W.replace("C", "K")]),
        ({"single": True}, ["", "hi", "hi " + W], [W + N, W + " more"]),
    ],
)
def test_tags_are_followed_as_asked(trial, compiler, options, good, bad):
    grammar = Grammar(tags=(WEATHER, NOW), **options)
    for text in good:
        assert accepts(compiler, grammar, text), text
    for text in (*bad, '<call>{"name": "other"', '<call>{"name": "weather", "arguments": {}}'):
        assert not accepts(compiler, grammar, text), text
    answers = [written(trial, grammar, seed) for seed in range(20)]
    for answer in filter(None, answers):
        assert accepts(compiler, grammar, answer.strip()), answer
    if options.get("required"):
        assert any("weather" in a for a in answers if a) and any("now" in a for a in answers if a)


def test_a_tags_schema_is_followed_in_structure_and_an_answers_to_the_letter(compiler):
    bounded = {"type": "object", "properties": {"n": {"type": "integer", "not": {"const": 1}}}}
    tag = Tag("<call>", bounded, "</call>")
    assert accepts(compiler, Grammar(tags=(tag,), required=True), '<call>{"n": 1}</call>')
    assert structured_output(openvino_genai, Grammar(tags=(tag,))) is not None
    with pytest.raises(BadInputError, match=r'"not".*leave that part out'):
        compiler.guide(Grammar(schema=bounded))
    beside = (tag, Tag("", {"type": "integer", "maximum": 4}, ""))
    either = Grammar(tags=beside, required=True, single=True)
    assert [accepts(compiler, either, t) for t in ("4", "5", '<call>{"n": 1}</call>')] == [
        True, False, True
    ]  # fmt: skip
    assert structured_output(openvino_genai, either) is None


@pytest.mark.parametrize(
    "grammar",
    [Grammar(), Grammar(schema={}, tags=(NOW,)), Grammar(tags=(Tag("", {}, ""),))],
)
def test_a_grammar_that_does_not_say_what_it_wants_is_refused(compiler, grammar):
    for follow in (compiler.guide, lambda g: structured_output(openvino_genai, g)):
        with pytest.raises(BadInputError, match=r"give (exactly one|it one)"):
            follow(grammar)


def test_a_grammar_that_xgrammar_refuses_never_reaches_the_batch(trial):
    bad = openvino_genai.StructuredOutputConfig(regex="([")
    with pytest.raises(BadInputError, match="Unclosed"):
        trial.answer(bad)
    assert trial.answer(openvino_genai.StructuredOutputConfig(regex="ab"), 3)[-1] == END


@pytest.fixture(scope="module", params=["openvino llama", "openvino lfm2", "onnx qwen3_moe"])
def engine(request, variant):
    runtime, family = request.param.split()
    loaded = load_batch_engine(variant(family), f"{runtime}-cpu")
    yield loaded
    loaded.close()


def answers(engine, *jobs):
    runs = [engine.start(job) for job in jobs]
    texts = [[] for _ in runs]
    while not all(run.done for run in runs):
        engine.step()
        for text, run in zip(texts, runs):
            text += [p.token for p in run.read()]
    return [engine.tokenizer.decode(text) for text in texts]


def test_every_engine_follows_grammars_beside_free_answers(engine):
    """A model of random weights writes what it must, under the batch's own masks."""
    prompt = tuple(engine.tokenizer.encode("Where is it?"))
    sampling = Sampling(max_tokens=200, temperature=1.5, top_p=1.0, top_k=0, seed=1)
    fixed = {"type": "object", "properties": {"ok": {"type": "boolean"}, "at": {"enum": ["法国"]}},
             "required": ["ok", "at"]}  # fmt: skip
    small = {"type": "integer", "minimum": 10, "maximum": 12}
    free, one, bounded, call = answers(
        engine,
        Job(prompt, Sampling(max_tokens=30, temperature=0, ignore_end=True)),
        Job(prompt, sampling, Grammar(schema=fixed)),
        Job(prompt, sampling, Grammar(schema=small)),
        Job(prompt, sampling, Grammar(tags=(WEATHER, NOW), required=True, single=True)),
    )
    assert json.loads(one)["at"] == "法国" and isinstance(json.loads(one)["ok"], bool)
    assert json.loads(bounded) in (10, 11, 12)
    arguments = json.loads(call.strip().removeprefix("<call>").removesuffix("</call>"))
    assert arguments["name"] in ("weather", "now")
    assert free == answers(engine, Job(prompt, Sampling(30, temperature=0, ignore_end=True)))[0]


def test_ever_new_grammars_do_not_pile_up_in_memory(variant, monkeypatch):
    """XGrammar keeps what it compiled; with room for one, the next waits beside or begins anew."""
    from edgekit.runtimes import openvino_batching

    monkeypatch.setattr(openvino_batching, "GRAMMAR_BYTES", 0)
    engine = load_batch_engine(variant("llama"), "openvino-cpu")
    sampling = Sampling(max_tokens=20, temperature=0)
    jobs = [Job((3, 4, 5), sampling, Grammar(schema={"const": f"v{i}"})) for i in range(3)]
    pipeline = engine._pipeline
    assert [a.strip() for a in answers(engine, *jobs[:2])] == ['"v0"', '"v1"']
    assert len(engine._compiled) == 1 and engine._pipeline is pipeline
    assert answers(engine, jobs[2])[0].strip() == '"v2"'
    assert len(engine._compiled) == 1 and engine._pipeline is not pipeline
    engine.close()


def test_a_schema_that_no_engine_follows_is_refused_at_the_start(engine):
    job = Job((3, 4), Sampling(), Grammar(schema={"type": "string", "not": {"const": "x"}}))
    with pytest.raises(BadInputError, match="cannot be followed"):
        engine.start(job)


def test_token_bytes_of_a_byte_level_vocabulary_add_up_to_the_text(tiny_llama):
    tokenizer = ChatTokenizer(tiny_llama)
    tokens = token_bytes(tiny_llama, tokenizer, 520)
    text = 'naïve {"键": "\t值😀"}\n'
    assert b"".join(tokens[t] for t in tokenizer.encode(text)).decode() == text
    assert [tokens[i] for i in (0, 1, 2, 519)] == [b""] * 4  # unk, bos, eos and beyond the end


def test_token_bytes_of_a_unigram_vocabulary_know_spaces_and_bytes(tmp_path):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁a", "b", "▁", "</s>"]
    model = models.Unigram([(p, -1.0) for p in pieces], unk_id=0, byte_fallback=True)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps)
    made.add_tokens([AddedToken("<call>", special=False)])
    made.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = ChatTokenizer(tmp_path)
    tokens = token_bytes(tmp_path, tokenizer, tokenizer.vocab_size)
    text = " ab a<call>中\n"
    assert b"".join(tokens[t] for t in tokenizer.encode(text)).decode() == text
    assert tokens[0] == tokens[len(pieces) - 1] == b""


def test_a_vocabulary_that_is_no_text_has_no_grammars(tmp_path):
    from tokenizers import Tokenizer, decoders, models

    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadInputError, match=r"decoder \(WordPiece\).*without tools"):
        token_bytes(tmp_path, ChatTokenizer(tmp_path), 2)


def test_masks_of_both_kinds_cover_a_vocabulary_wider_than_the_tokenizer(compiler):
    wide = GrammarCompiler([*VOCABULARY, *[b""] * 50], Alphabet())
    allowed = wide.guide(Grammar(schema={"type": "boolean"})).allowed()
    assert allowed.shape == (len(VOCABULARY) + 50,)
    assert not allowed[len(VOCABULARY) :].any() and np.count_nonzero(allowed)

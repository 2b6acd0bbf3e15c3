"""Grammars in the form of OpenVINO GenAI, whose masks work inside the batch (XGrammar).

JSON is spelled by our own rules (:mod:`edgekit.runtimes.json_rules`); free text in which a tag may
begin is left to XGrammar's triggers.
"""

from __future__ import annotations

import json
from typing import Any

from edgekit.runtimes.batching import Grammar, Tag
from edgekit.runtimes.grammars import check_grammar, trigger_groups
from edgekit.runtimes.json_rules import JsonRules


def structured_output(genai: Any, grammar: Grammar) -> Any | None:
    """A ``StructuredOutputConfig``; None where rules cannot follow a schema to the letter.

    Raises:
        BadInputError: the grammar is none, or nothing fulfils it.
    """
    check_grammar(grammar)
    config = genai.StructuredOutputConfig
    if grammar.tags and not grammar.required:
        return config(structural_tags_config=_triggered(config, grammar))
    rules = JsonRules()
    if grammar.schema is not None:
        root = f"ws {rules.add(grammar.schema)}"
        return None if rules.ignored else config(grammar=rules.text(root))
    for tag in grammar.tags:
        if not tag.begin:
            rules.add(tag.schema)
    if rules.ignored:
        return None
    choices = " | ".join(_tag(rules, tag) for tag in grammar.tags)
    root = f"ws ({choices})"
    return config(grammar=rules.text(root if grammar.single else f"{root} (ws ({choices}))*"))


def _tag(rules: JsonRules, tag: Tag) -> str:
    parts = (_literal(tag.begin), rules.add(tag.schema), _literal(tag.end))
    return " ".join(part for part in parts if part)


def _triggered(config: Any, grammar: Grammar) -> Any:
    tags, triggers = [], []
    for trigger, group in trigger_groups(grammar.tags):
        triggers.append(trigger)
        for tag in group:
            rules = JsonRules()
            text = rules.text(rules.add(tag.schema))
            tags.append(config.Tag(tag.begin, config.EBNF(text), tag.end))
    return config.TriggeredTags(triggers, tags, stop_after_first=grammar.single)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""

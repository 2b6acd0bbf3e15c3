"""What an embedding model can do, measured on a few pairs of question and answer.

Models differ in the cosines they give and in the languages they know. Two numbers per language are
taken from ten questions and their answers, written for this: whether the right answer is the
nearest one almost always (else the model does not know the language, and its vectors are not used
for questions in it), and the cosine that separates answers from other texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from edgekit.runtimes.embedding import Embedder

Language = Literal["english", "chinese"]
_ENOUGH_RIGHT = 0.8
NEAR = 0.75  # of the way from the cosine of other texts to that of answers
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")

PAIRS: dict[Language, tuple[tuple[str, str], ...]] = {
    "english": (
        ("When does the shop open?", "Customers are welcome from nine in the morning."),
        ("How do I get my money back?", "Refunds are paid within two weeks of a return."),
        ("What does the engine burn?", "The motor runs on diesel fuel."),
        ("Who wrote the report?", "The author of this document is Maria Keller."),
        ("Why did the bridge collapse?", "Rust had weakened the cables until they gave way."),
        ("How tall is the mountain?", "Its peak rises 4,810 metres above the sea."),
        ("Can I bring my dog?", "Pets are not allowed inside the building."),
        ("How is bread made?", "Knead flour, water and yeast, let the dough rise and bake it."),
        ("Is my password safe?", "Credentials are stored encrypted."),
        ("What should I do in a fire?", "If the alarm sounds, leave by the nearest exit."),
    ),
    "chinese": (
        ("商店几点开门？", "我们早上九点开始营业。"),
        ("怎样才能拿回我的钱？", "退货后两周内退款。"),
        ("发动机烧什么？", "该电机以柴油为燃料。"),
        ("报告是谁写的？", "本文件的作者是王丽。"),
        ("桥为什么塌了？", "钢缆因锈蚀而断裂。"),
        ("这座山有多高？", "主峰海拔四千八百一十米。"),
        ("我可以带狗吗？", "楼内不允许宠物进入。"),
        ("面包是怎么做的？", "把面粉、水和酵母揉成面团，发酵后烘烤。"),
        ("我的密码安全吗？", "登录凭据以加密方式保存。"),
        ("着火时该怎么办？", "警报响起时，请从最近的出口离开。"),
    ),
}


@dataclass(frozen=True)
class Traits:
    """Per language: whether the model knows it, and the least cosine of an answer."""

    knows: dict[str, bool]
    floor: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """For the index."""
        return {"knows": self.knows, "floor": self.floor}


def language_of(text: str) -> Language:
    """ "chinese" where a third of the letters are ideographs (or kana, or hangul)."""
    letters = sum(1 for c in text if c.isalpha())
    return "chinese" if 3 * len(_IDEOGRAPH.findall(text)) > letters else "english"


def measure_traits(embedder: Embedder) -> Traits:
    """Embed the pairs and compare every question with every answer."""
    knows: dict[str, bool] = {}
    floor: dict[str, float] = {}
    for language, pairs in PAIRS.items():
        questions = embedder.embed([q for q, _ in pairs], "query")
        answers = embedder.embed([a for _, a in pairs], "passage")
        cosines = questions @ answers.T  # [questions, answers]
        right = cosines.argmax(axis=1) == np.arange(len(pairs))
        knows[language] = bool(right.mean() >= _ENOUGH_RIGHT)
        others = cosines[~np.eye(len(pairs), dtype=bool)]
        right_mean, other_mean = np.diag(cosines).mean(), others.mean()
        floor[language] = float(other_mean + NEAR * (right_mean - other_mean))
    return Traits(knows, floor)

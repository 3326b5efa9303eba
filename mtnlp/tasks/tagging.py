"""A tag for every word: entities, chunks, parts of speech. Label names stand in the order of the source's
ids."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec


def _bio(*types: str) -> tuple[str, ...]:
    return ("O", *(f"{part}-{name}" for name in types for part in "BI"))


def _conll(
    name: str, column: str, labels: tuple[str, ...], instruction: str, metrics: tuple[str, ...]
) -> TaskSpec:
    return TaskSpec(
        name=f"tagging/conll2003-{name}",
        kind="tag",
        source="hub:tomaarsen/conll2003@main",
        fields={"tags": column},
        labels=labels,
        instruction=instruction,
        metrics=metrics,
        licence="research use; the Reuters text needs its own agreement",
        citation="Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050",
        notes="A copy without loading script; its branch main is not a fixed revision.",
    )


_ENTITIES = ("span_micro_f1", "token_accuracy")
_PENN = (
    '"', "''", "#", "$", "(", ")", ",", ".", ":", "``", "CC", "CD", "DT", "EX", "FW", "IN", "JJ", "JJR",
    "JJS", "LS", "MD", "NN", "NNP", "NNPS", "NNS", "NN|SYM", "PDT", "POS", "PRP", "PRP$", "RB", "RBR",
    "RBS", "RP", "SYM", "TO", "UH", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "WDT", "WP", "WP$", "WRB",
)  # fmt: skip

_UNIVERSAL = (
    "NOUN", "PUNCT", "ADP", "NUM", "SYM", "SCONJ", "ADJ", "PART", "DET", "CCONJ", "PROPN", "PRON", "X", "_",
    "ADV", "INTJ", "VERB", "AUX",
)  # fmt: skip

TASKS = {
    spec.name: spec
    for spec in (
        _conll(
            "ner",
            "ner_tags",
            _bio("PER", "ORG", "LOC", "MISC"),
            "Tag the names of persons, organisations, locations and others.",
            _ENTITIES,
        ),
        _conll(
            "chunk",
            "chunk_tags",
            _bio("ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP"),
            "Tag the phrases of the sentence.",
            _ENTITIES,
        ),
        _conll(
            "pos",
            "pos_tags",
            _PENN,
            "Give the part-of-speech tag of every word.",
            ("token_accuracy", "macro_f1"),
        ),
        TaskSpec(
            name="tagging/wnut17",
            kind="tag",
            source="hub:leondz/wnut_17@1ac0b6d18c8a1a1d1606b24bef78b8af2f92d2d9",
            fields={"tags": "ner_tags"},
            labels=_bio("corporation", "creative-work", "group", "location", "person", "product"),
            instruction="Tag names of corporations, creative works, groups, locations, persons, products.",
            metrics=_ENTITIES,
            licence="CC BY 4.0",
            citation="Derczynski et al. 2017, WNUT2017 shared task",
            notes="The revision is the hub's own parquet copy of a data set that is a loading script.",
        ),
        TaskSpec(
            name="tagging/ud-ewt-pos",
            kind="tag",
            source="hub:universal-dependencies/universal_dependencies/en_ewt@2.18",
            fields={"tags": "upos"},
            metrics=("token_accuracy", "macro_f1"),
            labels=_UNIVERSAL,
            instruction="Give the universal part-of-speech tag of every word.",
            licence="CC BY-SA 4.0",
            citation="Silveira et al. 2014, A Gold Standard Dependency Corpus for English",
            notes="Pinned to the tag of the treebank release, not to a commit.",
        ),
    )
}

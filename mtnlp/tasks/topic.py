"""What a text is about, and what kind of answer a question wants."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

CUT = {"train": "train[:95%]", "validation": "train[95%:]", "test": "test"}
CUT_NOTE = "The source has no validation split; the last 5 % of train are used."

_DBPEDIA = (
    "Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation",
    "Building", "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork",
)  # fmt: skip
_DBPEDIA_WORDS = (
    "company", "educational institution", "artist", "athlete", "office holder", "means of transport",
    "building", "natural place", "village", "animal", "plant", "album", "film", "written work",
)  # fmt: skip

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="topic/ag-news",
            kind="classify",
            source="hub:fancyzhx/ag_news@eb185aade064a813bc0b7f42de02595523103ca4",
            splits=CUT,
            labels=("World", "Sports", "Business", "Sci/Tech"),
            notes=CUT_NOTE,
            instruction="Which section of the news does this text belong to?",
            licence="not stated; research use",
            citation="Zhang et al. 2015, Character-level Convolutional Networks, arXiv:1509.01626",
        ),
        TaskSpec(
            name="topic/dbpedia14",
            kind="classify",
            source="hub:fancyzhx/dbpedia_14@9abd46cf7fc8b4c64290f26993c540b92aa145ac",
            splits={"train": "train", "test": "test"},
            fields={"text": "{{ title }}: {{ content | trim }}"},
            labels=_DBPEDIA,
            words=_DBPEDIA_WORDS,
            instruction="What kind of thing does this entry describe?",
            licence="CC BY-SA 3.0",
            notes="The source has no validation split, and its rows are sorted by label.",
            citation="Zhang et al. 2015, Character-level Convolutional Networks, arXiv:1509.01626",
        ),
        TaskSpec(
            name="topic/trec",
            kind="classify",
            source="hub:CogComp/trec@65752bf53af25bc935a0dce92fb5b6c930728450",
            splits=CUT,
            fields={"label": "coarse_label"},
            labels=("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
            words=("abbreviation", "entity", "description", "person", "location", "number"),
            instruction="What kind of answer does this question ask for?",
            licence="not stated",
            notes=f"{CUT_NOTE} The revision is the hub's own parquet copy of a loading script.",
            citation="Li and Roth 2002, Learning Question Classifiers",
        ),
    )
}

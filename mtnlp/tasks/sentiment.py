"""Opinions in reviews: two classes, and stars as ordered labels."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="sentiment/imdb",
            kind="classify",
            source="hub:stanfordnlp/imdb@e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
            splits={"train": "train", "test": "test"},
            labels=("neg", "pos"),
            words=("negative", "positive"),
            instruction="Is this film review negative or positive?",
            metrics=("accuracy",),
            notes="The source has no validation split, and its rows are sorted by label.",
            citation="Maas et al. 2011, Learning Word Vectors for Sentiment Analysis",
            licence="not stated",
        ),
        TaskSpec(
            name="sentiment/sst5",
            kind="ordinal",
            source="hub:SetFit/sst5@e51bdcd8cd3a30da231967c1a249ba59361279a3",
            labels=("very negative", "negative", "neutral", "positive", "very positive"),
            instruction="How positive is this sentence from a film review?",
            metrics=("accuracy", "quadratic_kappa", "mae"),
            citation="Socher et al. 2013, Recursive Deep Models for Semantic Compositionality",
            licence="not stated",
        ),
        TaskSpec(
            name="sentiment/yelp",
            kind="ordinal",
            source="hub:Yelp/yelp_review_full@c1f9ee939b7d05667af864ee1cb066393154bf85",
            splits={"train": "train[:99%]", "validation": "train[99%:]", "test": "test"},
            labels=STARS,
            instruction="How many stars does this review give?",
            metrics=("accuracy", "quadratic_kappa", "mae"),
            licence="Yelp dataset terms of use",
            notes="The source has no validation split; the last 1 % of train are used.",
            citation="Zhang et al. 2015, Character-level Convolutional Networks, arXiv:1509.01626",
        ),
        TaskSpec(
            name="sentiment/amazon",
            kind="ordinal",
            source="hub:SetFit/amazon_reviews_multi_en@ec73b665e4be0f567b69d39425355401cfe0d29b",
            labels=STARS,
            instruction="How many stars does this product review give?",
            metrics=("accuracy", "quadratic_kappa", "mae"),
            citation="Keung et al. 2020, The Multilingual Amazon Reviews Corpus, arXiv:2010.02573",
            licence="Amazon terms: non-commercial research",
        ),
    )
}

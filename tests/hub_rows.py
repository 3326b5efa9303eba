"""One row per registered task, with the columns and types of the hub's data set, and its target."""

from __future__ import annotations

_NLI = {"premise": "A man sleeps.", "hypothesis": "A man is awake.", "label": 2}
_KEYED = {
    "id": "7",
    "question": "What melts?",
    "answerKey": "B",
    "choices": {"text": ["stone", "ice", "2"], "label": ["A", "B", "C"]},
}
_SQUAD = {
    "id": "1",
    "title": "Paris",
    "context": "Paris is the capital of France.",
    "question": "What is Paris?",
    "answers": {"text": ["the capital", "the capital", "capital of France"], "answer_start": [9, 9, 13]},
}
_SPANS = (("the capital", 9), ("capital of France", 13))
_NER = {
    "id": "0",
    "tokens": ["EU", "rejects", "German", "call"],
    "ner_tags": [3, 0, 7, 0],
    "pos_tags": [22, 42, 16, 21],
    "chunk_tags": [11, 21, 11, 12],
}
_GSM = {"question": "What is 2 and 3?", "answer": "2 and 3 is 5.\n#### 5"}
_CIVIL = {"text": "Rubbish.", "toxicity": 0.25, "insult": 0.5, "threat": 0.0, "obscene": 0.125}


def _sentence(label: float, **more: object) -> dict[str, object]:
    return {"sentence": "It is fine.", "label": label, "idx": 3, **more}


def _two(label: float) -> dict[str, object]:
    return {"sentence1": "It is fine.", "sentence2": "It is good.", "label": label, "idx": 3}


ROWS: dict[str, tuple[dict[str, object], object]] = {
    "glue/cola": (_sentence(1), 1),
    "glue/sst2": (_sentence(0), 0),
    "glue/mrpc": (_two(1), 1),
    "glue/qqp": ({"question1": "Why?", "question2": "", "label": 0, "idx": 1}, 0),
    "glue/stsb": (_two(3.799999952316284), 3.799999952316284),
    "glue/mnli": ({**_NLI, "idx": 4}, 2),
    "glue/qnli": ({"question": "Who?", "sentence": "He did.", "label": 0, "idx": 1}, 0),
    "glue/rte": (_two(1), 1),
    "glue/wnli": (_two(0), 0),
    "superglue/boolq": ({"question": "is ice cold", "passage": "Ice is cold.", "idx": 0, "label": 1}, 1),
    "superglue/cb": ({**_NLI, "label": 1, "idx": 0}, 1),
    "superglue/copa": (
        {
            "premise": "It rained.",
            "choice1": "I got wet.",
            "choice2": "I slept.",
            "question": "effect",
            "idx": 0,
            "label": 0,
        },
        0,
    ),
    "superglue/multirc": (
        {
            "paragraph": "He ate.",
            "question": "Who ate?",
            "answer": "he",
            "label": 1,
            "idx": {"paragraph": 0, "question": 0, "answer": 1},
        },
        1,
    ),
    "superglue/record": (
        {
            "passage": "Ann met Bo.",
            "query": "@placeholder met Bo",
            "entities": ["Bo", "Ann"],
            "answers": ["Ann", "Bo"],
            "entity_spans": {"text": ["Ann", "Bo"], "start": [0, 8]},
            "idx": {"passage": 0, "query": 0},
        },
        1,
    ),
    "superglue/rte": ({**_NLI, "label": 1, "idx": 0}, 1),
    "superglue/wic": (
        {
            "word": "bank",
            "sentence1": "A bank of sand.",
            "sentence2": "The bank is open.",
            "start1": 2,
            "end1": 6,
            "start2": 4,
            "end2": 8,
            "idx": 1,
            "label": 0,
        },
        0,
    ),
    "superglue/wsc": (
        {
            "text": "Mark told Pete that he was late.",
            "span1_index": 0,
            "span2_index": 4,
            "span1_text": "Mark",
            "span2_text": "he",
            "idx": 0,
            "label": 1,
        },
        1,
    ),
    "sentiment/imdb": ({"text": "Dull.", "label": 0}, 0),
    "sentiment/sst5": ({"text": "Dull.", "label": 3, "label_text": "positive"}, 3),
    "sentiment/yelp": ({"label": 4, "text": "Great."}, 4),
    "sentiment/amazon": ({"id": "en_1", "text": "Broken.", "label": 0, "label_text": "0"}, 0),
    "topic/ag-news": ({"text": "Shares fell.", "label": 2}, 2),
    "topic/dbpedia14": ({"label": 0, "title": "Acme", "content": " Acme is a firm."}, 0),
    "topic/trec": ({"text": "Who is he?", "coarse_label": 3, "fine_label": 29}, 3),
    "tweets/*": ({"text": "@user ok", "label": 1}, 1),
    "emotion/go-emotions": ({"text": "Thanks!", "labels": [15, 3], "id": "x"}, (3, 15)),
    "emotion/emotion": ({"text": "i feel fine", "label": 1}, 1),
    "nli/multi-nli": ({"promptID": 1, "pairID": "1n", "genre": "fiction", **_NLI}, 2),
    "nli/anli-*": ({"uid": "1", "reason": "", **_NLI}, 2),
    "similarity/paws": ({"id": 1, "sentence1": "A b.", "sentence2": "B a.", "label": 0}, 0),
    "similarity/stsb": ({"sentence1": "A b.", "sentence2": "B a.", "score": 0.64}, 0.64),
    "choice/arc-*": (
        {**_KEYED, "answerKey": "2", "choices": {"text": ["4", "3", "2"], "label": ["1", "2", "3"]}},
        1,
    ),
    "choice/openbookqa": ({**_KEYED, "question_stem": "What melts?"}, 1),
    "choice/commonsense-qa": ({**_KEYED, "question_concept": "melt"}, 1),
    "choice/qasc": (
        {**_KEYED, "fact1": "a", "fact2": "b", "combinedfact": "c", "formatted_question": "d"},
        1,
    ),
    "choice/hellaswag": (
        {
            "ind": 4,
            "activity_label": "Cleaning",
            "ctx_a": "A man",
            "ctx_b": "he",
            "ctx": "A man he",
            "endings": ["sits.", "runs.", "eats.", "is."],
            "source_id": "a",
            "split": "train",
            "split_type": "indomain",
            "label": "3",
        },
        3,
    ),
    "choice/winogrande": ({"sentence": "The _ fell.", "option1": "cup", "option2": "cat", "answer": "2"}, 1),
    "choice/piqa": ({"goal": "Cool a drink", "sol1": "Add ice", "sol2": "Add sand", "label": 0}, 0),
    "choice/race": (
        {
            "example_id": "high1.txt",
            "article": "He ran.",
            "answer": "C",
            "question": "He _",
            "options": ["sat", "ate", "ran", "hid"],
        },
        2,
    ),
    "choice/mmlu": (
        {
            "question": "What is 1 and 1?",
            "subject": "abstract_algebra",
            "choices": ["0", "1", "2", "3"],
            "answer": 2,
        },
        2,
    ),
    "reading/squad": (_SQUAD, _SPANS),
    "reading/squad-v2": ({**_SQUAD, "answers": {"text": [], "answer_start": []}}, ()),
    "reading/adversarial-qa": (
        {**_SQUAD, "metadata": {"split": "train", "model_in_the_loop": "BERT"}},
        _SPANS,
    ),
    "reading/boolq": ({"question": "is ice cold", "answer": True, "passage": "Ice is cold."}, 1),
    "tagging/conll2003-ner": (_NER, (3, 0, 7, 0)),
    "tagging/conll2003-chunk": (_NER, (11, 21, 11, 12)),
    "tagging/conll2003-pos": (_NER, (22, 42, 16, 21)),
    "tagging/wnut17": ({"id": "0", "tokens": ["Empire", "State", "here"], "ner_tags": [7, 8, 0]}, (7, 8, 0)),
    "tagging/ud-ewt-pos": (
        {"sent_id": "1", "text": "I ran", "tokens": ["I", "ran"], "upos": ["PRON", "VERB"]},
        (11, 16),
    ),
    "summary/xsum": ({"document": "Long text.", "summary": "Short.", "id": "1"}, ("Short.",)),
    "summary/cnn-dailymail": ({"article": "Long text.", "highlights": "Short.", "id": "1"}, ("Short.",)),
    "summary/samsum": ({"id": "1", "dialogue": "A: hi\nB: hi", "summary": "They greet."}, ("They greet.",)),
    "writing/gsm8k": (_GSM, (_GSM["answer"],)),
    "writing/gsm8k-answer": (_GSM, ("5",)),
    "writing/common-gen": (
        {"concept_set_idx": 0, "concepts": ["ski", "hill"], "target": "He skis."},
        ("He skis.",),
    ),
    "legal/unfair-tos": ({"text": "We may stop at will.", "labels": [1]}, (1,)),
    "legal/case-hold": (
        {"context": "as held (<HOLDING>)", "endings": ["a", "b", "c", "d", "e"], "label": 4},
        4,
    ),
    "intent/banking77": ({"text": "Where is my card?", "label": 11}, 11),
    "intent/clinc150": ({"text": "what is love", "intent": 42}, 42),
    "toxicity/civil-comments-toxicity": (_CIVIL, 0.25),
    "toxicity/civil-comments-insult": (_CIVIL, 0.5),
    "toxicity/civil-comments-threat": (_CIVIL, 0.0),
    "toxicity/civil-comments-obscene": (_CIVIL, 0.125),
}

"""Baselines and similarity by encoders, against plain transformers on tiny models of random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from r1ranker.errors import UserError
from r1ranker.evaluation.baselines.classifier import ClassifierSettings, RouterClassifier
from r1ranker.evaluation.baselines.encoders import CrossEncoding, Embeddings, MonoT5
from r1ranker.evaluation.baselines.pretrained import parse_baseline_models, pretrained_baselines
from r1ranker.tasks.example import RankingExample
from r1ranker.thoughts.bank import Thought
from r1ranker.thoughts.retrieval import ThoughtIndex

Call = Callable[..., tuple[int, str, str]]
TEXTS = ("the cat hunts at night", "bread rises", "the moon is far away , and cats sleep under it")
EXAMPLE = RankingExample(
    "Passage-9", ("passage 0", "passage 1", "passage 2"), "passage 0", query="where do cats hunt", texts=TEXTS
)
WORDS = sorted(
    set(
        " ".join(
            (*TEXTS, EXAMPLE.query, "Query : Document Relevant true false red blue green what is a thing and so")
        ).split()
    )
)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Kind -> directory of a tiny model."""
    here = tmp_path_factory.mktemp("encoders")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=128,
    )  # fmt: skip
    torch.manual_seed(0)
    size = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "initializer_range": 0.5, "max_position_embeddings": 128, "pad_token_id": 0,
    }  # fmt: skip
    made = {
        "embeddings": BertModel(BertConfig(**size)),
        "usual": BertModel(BertConfig(**{**size, "initializer_range": 0.1})),
        "cross-encoder": BertForSequenceClassification(BertConfig(**size, num_labels=1)),
        "several": BertForSequenceClassification(BertConfig(**size, num_labels=3)),
        "monot5": T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(vocabulary), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
                decoder_start_token_id=0, pad_token_id=0,
            )
        ),
    }  # fmt: skip
    for kind, model in made.items():
        model.save_pretrained(here / kind)
        tokenizer.save_pretrained(here / kind)
    return {kind: str(here / kind) for kind in made}


def test_embeddings_are_the_cosines_of_means_over_tokens(encoders: dict[str, str]) -> None:
    path = encoders["embeddings"]
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    def embed(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    asked = embed(EXAMPLE.query)
    expected = [float(torch.cosine_similarity(asked, embed(text), dim=0)) for text in TEXTS]
    assert Embeddings(path).scores(EXAMPLE) == pytest.approx(expected, abs=1e-5)


def test_a_cross_encoder_scores_each_pair(encoders: dict[str, str]) -> None:
    path = encoders["cross-encoder"]
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        logits = [float(model(**tokenizer(EXAMPLE.query, text, return_tensors="pt")).logits) for text in TEXTS]
    found = CrossEncoding(path).scores(EXAMPLE)
    assert found == pytest.approx(torch.tensor(logits).sigmoid().tolist(), abs=1e-5)
    assert len(set(found)) == 3
    with pytest.raises(UserError, match="found a cross-encoder of 3 scores a text; one of 1 is wanted"):
        CrossEncoding(encoders["several"]).scores(EXAMPLE)


def test_monot5_is_true_against_false_of_each_text_alone(encoders: dict[str, str]) -> None:
    path = encoders["monot5"]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    true, false = tokenizer.convert_tokens_to_ids(["true", "false"])
    expected = []
    for text in TEXTS:
        inputs = tokenizer(f"Query: {EXAMPLE.query} Document: {text} Relevant:", return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs, decoder_input_ids=torch.tensor([[0]])).logits[0, 0].double()
        expected.append(float(logits[true] - torch.logaddexp(logits[true], logits[false])))
    baseline = MonoT5(path)
    baseline._load()
    # with [CLS] alone before it, as T5's tokenizer has nothing there
    assert (baseline._true, baseline._false) == (true, false)
    assert baseline.scores(EXAMPLE) == pytest.approx(expected, abs=1e-5)


def test_a_classifier_learns_which_llm_is_best_for_a_word(encoders: dict[str, str]) -> None:
    names = ("one", "two", "three")
    kinds = dict(zip(("red", "blue", "green"), names, strict=True))

    def asked(query: str, positive: str) -> RankingExample:
        return RankingExample("Router-Cost", names, positive, query=query)

    rows = [
        asked(f"what is a {colour} {word}", best)
        for colour, best in kinds.items()
        for word in ("thing", "cat", "moon", "night")
    ]
    settings = ClassifierSettings(epochs=30, batch_size=3, lr=1e-3)
    path = encoders["usual"]
    baseline, again = (RouterClassifier(path, rows, settings=settings) for _ in range(2))
    for colour, best in kinds.items():
        unseen = asked(f"what is a {colour} bread", best)
        assert baseline.rank_with_ties(unseen)[0] == [best]
        assert baseline.scores(unseen) == again.scores(unseen)
    new = replace(unseen, candidates=("unknown", *names))
    assert baseline.rank_with_ties(new)[-1] == ["unknown"]


def test_requests_are_compared_by_embeddings(encoders: dict[str, str]) -> None:
    bank = [Thought("Passage-9", text, 3, "so", 1.0, "m", n) for n, text in enumerate(TEXTS)]
    index = ThoughtIndex(bank, "embeddings", encoders["embeddings"])
    scores = Embeddings(encoders["embeddings"]).scores(EXAMPLE)
    assert [one.step for one in index.find(EXAMPLE, 3)] == sorted(range(3), key=lambda n: -scores[n])


def test_what_is_no_baseline_model_is_said(encoders: dict[str, str], tmp_path: Path) -> None:
    for value, said in (
        ("bert=x", "found 'bert=x'; KIND=DIR with a kind of embeddings, cross-encoder, monot5, classifier is wanted"),
        ("monot5", "found 'monot5'; KIND=DIR"),
        (f"monot5={tmp_path}", "no config.json in this directory"),
        ("monot5=./gone", "./gone: no such directory"),
    ):
        with pytest.raises(UserError, match=said):
            parse_baseline_models([value])
    with pytest.raises(UserError, match="monot5 is named twice"):
        parse_baseline_models([f"monot5={encoders['monot5']}"] * 2)
    with pytest.raises(UserError, match="cannot be loaded as MonoT5"):
        MonoT5(encoders["embeddings"]).scores(EXAMPLE)


def test_an_evaluation_has_each_where_it_suits(
    encoders: dict[str, str], call: Call, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    import json

    models = parse_baseline_models([f"{kind}={encoders[kind]}" for kind in ("embeddings", "cross-encoder", "monot5")])
    models["classifier"] = encoders["embeddings"]
    flags = [text for kind, path in models.items() for text in ("--baseline-model", f"{kind}={path}")]
    code, out, error = call(
        "eval", "--dataset", "Passage-5,Router-Cost", "--data", str(toy / "bench"), "--model-path", tiny_model, "--limit", "2",
        "--strategy", "direct", "--no-think", "--constrain", "candidates", "--engine", "hf", "--output-dir", str(tmp_path), *flags,
    )  # fmt: skip
    assert code == 0, error
    (file,) = tmp_path.glob("*direct*[!g].json")
    found = json.loads(file.read_text())["tasks"]
    every = {"embeddings", "cross-encoder", "MonoT5", "classifier", "BM25"}
    assert every & set(found["Passage-5"]["baselines"]) == every - {"classifier"}
    assert every <= set(found["Router-Cost"]["baselines"])
    assert "MonoT5" in out
    rows = [EXAMPLE]
    assert [type(one) for one in pretrained_baselines(models, rows, "Passage-9")] == [Embeddings, CrossEncoding, MonoT5]

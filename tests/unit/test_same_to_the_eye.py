"""Names that look the same, and names that are the same to a tokenizer: compared in one form, and refused in a line where no answer could tell."""

from __future__ import annotations

import unicodedata
from contextlib import nullcontext
from pathlib import Path

import pytest
from fuzz.chat_models import FAMILIES, KINDS, make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r1ranker.data.files.parquet import example_to_row, read_training_rows, write_rows
from r1ranker.data.loader import load_prompts
from r1ranker.errors import UserError
from r1ranker.ranking.lengths import check_pool
from r1ranker.ranking.settings import RankerSettings
from r1ranker.rewards import compute_score
from r1ranker.rollout.constraint import build_constraint
from r1ranker.tasks.answers import parse_answer
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.tasks.text import canonical, find_name

COMPOSED, APART = (unicodedata.normalize(form, "Amélie") for form in ("NFC", "NFD"))
PAIRS = [
    (COMPOSED, APART),
    ("Å", "\u212b"),  # Angstrom's sign
    ("한국", unicodedata.normalize("NFD", "한국")),
    ("ệ", "e\u0302\u0323"),  # marks in another order
    ("two  words", "two\u00a0words"),
]
ANSWER = AnswerFormat(think=False)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_spellings_of_a_name_are_one_candidate(one: str, other: str) -> None:
    assert one != other
    with pytest.raises(
        UserError, match=r"row 3: candidates holds '.*' twice \(as '.*' and '.*'\); names must be distinct"
    ):
        RankingExample("Rec-Movie", (one, "x", other)).validate("row 3")
    example = RankingExample("Rec-Movie", ("x", one), other, grades=(0, 1))
    example.validate()
    assert (example.positive, example.candidates) == (one, ("x", one))  # texts stay as they are
    assert example.with_pool((one, "x")).positive == one
    assert find_name(["x", one], other) == 1
    assert parse_answer(
        f"<answer>{other}</answer>", ["x", one, *({one.swapcase()} - {one})], "iterative", ANSWER
    ).named == (1,)


def test_names_that_only_resemble_each_other_stay_two() -> None:
    for one, other in (("Alien", "ALIEN"), ("A", "А"), ("ﬁlm", "film"), ("[x]", "⟦x⟧"), ("1", "１")):
        assert canonical(one) != canonical(other)
        RankingExample("Rec-Movie", (one, other), other).validate()
        assert parse_answer(f"<answer>{other}</answer>", [one, other], "iterative", ANSWER).named == (1,)


def test_the_positive_of_a_row_is_the_candidate_that_it_looks_like(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    row = example_to_row(
        RankingExample("Rec-Movie", ("x", COMPOSED), COMPOSED, history=("y",)), "iterative", "train", 0
    )
    row["reward_model"]["ground_truth"]["gt"] = APART
    write_rows([row], str(file))
    (read,) = read_training_rows([str(file)])
    assert read["reward_model"]["ground_truth"]["gt"] == COMPOSED
    truth = {"candidate_text": ["x", COMPOSED], "gt": APART}
    assert compute_score("iterative_ranking", "<answer>x</answer>", truth, {"think": False})["task"] == 1


def lower_case() -> PreTrainedTokenizerFast:
    raw = KINDS["byte-level"]()
    raw.normalizer = normalizers.Lowercase()
    return make_tokenizer(raw, FAMILIES["ChatML"].template)


def without_accents() -> PreTrainedTokenizerFast:
    raw = KINDS["byte-level"]()
    raw.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    return make_tokenizer(raw, FAMILIES["ChatML"].template)


def few_letters() -> PreTrainedTokenizerFast:
    return make_tokenizer(KINDS["unigram"](), FAMILIES["ChatML"].template)


def words_only() -> PreTrainedTokenizerFast:
    """White space is gone, and with it the break between two names of a list."""
    words = ["<unk>", "Silent", "Harbour", "Quest", "<", "/", ">", "answer", "[", "]", *"123"]
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.Fuse()
    return make_tokenizer(raw, FAMILIES["ChatML"].template)


@pytest.mark.parametrize(
    ("tokenizer", "pool", "said"),
    [
        (lower_case(), ["Silent Harbour", "x", "SILENT harbour"], "'Silent Harbour' and 'SILENT harbour' are the same tokens"),
        (without_accents(), ["Amelie", COMPOSED], f"'Amelie' and '{COMPOSED}' are the same tokens"),
        (few_letters(), ["дом", "x", "лес"], "'дом' and 'лес' are the same tokens"),
        (few_letters(), ["Alien", "Amûlie 2"], "'Amûlie 2' reads as 'Am<unk>lie 2'"),
    ],
)  # fmt: skip
def test_names_that_a_tokenizer_cannot_tell_are_refused_before_work_begins(
    tokenizer: PreTrainedTokenizerFast, pool: list[str], said: str, tmp_path: Path
) -> None:
    for mode in ("iterative", "direct"):
        with pytest.raises(
            UserError,
            match=rf"some/model, {said}.*, so that no answer by name can be right; answer_style=label is wanted",
        ):
            build_constraint(tokenizer, pool, mode, ANSWER)  # type: ignore[arg-type]
        assert build_constraint(tokenizer, pool, mode, AnswerFormat("label", think=False)).final_ids  # type: ignore[arg-type]
    file = tmp_path / "rows.parquet"
    good = RankingExample("Rec-Movie", ("Alien", "x"), "x", history=("y",))
    bad = RankingExample("Rec-Movie", tuple(pool), pool[0], history=("y",))
    write_rows([example_to_row(one, "iterative", "train", 0) for one in (good, bad)], str(file))
    with pytest.raises(UserError, match=rf"rows.parquet: row 1: candidates: .*{said}"):
        load_prompts([str(file)], tokenizer, 10_000, cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())
    for answer in (ANSWER, AnswerFormat("label", think=False)):
        ranked = RankerSettings(answer_format=answer, constrain="candidates")
        with nullcontext() if answer.answer_style == "label" else pytest.raises(UserError, match=said):
            for example in (good, bad):
                check_pool(tokenizer, ranked, example)
    labels, _ = load_prompts([str(file)], tokenizer, 10_000, answer_style="label", cache_dir=str(tmp_path / "cache"))
    assert len(labels) == 2


def test_a_list_whose_names_cannot_be_parted_is_refused() -> None:
    pool = ["Silent", "Silent Harbour", "Quest"]
    assert build_constraint(words_only(), pool, "iterative", ANSWER).final_ids
    with pytest.raises(UserError, match="'Silent' and 'Silent Harbour': the tokenizer of some/model does not tell"):
        build_constraint(words_only(), pool, "direct", ANSWER)


@pytest.mark.parametrize("written", ["silent  HARBOUR", "Silent Harbour.", "“Silent Harbour”"])
def test_a_tokenizer_that_loses_case_alone_is_good_enough(written: str) -> None:
    tokenizer = lower_case()
    pool = ["Silent Harbour", "Quest"]
    ids = build_constraint(tokenizer, pool, "iterative", ANSWER).final_ids[0][:-1]
    assert tokenizer.decode(ids) == "silent harbour</answer>"
    assert parse_answer(f"<answer>{written}</answer>", pool, "iterative", ANSWER).named == (0,)

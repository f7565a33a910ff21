"""The questions of docs/results.md, and which rows of the full tables answer them."""

from __future__ import annotations

from results_page.layout import Bars, Column, Lines, Question, Row

MRR, NDCG, SEEDS = Column("MRR"), Column("NDCG@10"), Column("MRR by seed")
CALLS, PROMPT, RESPONSE = Column("calls a query"), Column("prompt tokens"), Column("response tokens")
MRR_BARS = (Bars(("MRR",)),)
CURVES = tuple(
    Lines("{arm}, step", cost, "MRR", cost, "MRR x 100") for cost in ("training tokens, million", "training, s")
)
PASSAGES = ("Passage-5", "Passage-7", "Passage-9")
RECOMMENDATION, ROUTING = (
    ("Rec-Movie", "Rec-Music", "Rec-Game"),
    ("Router-Performance", "Router-Balance", "Router-Cost"),
)
DATA_SETS = {"films, ml-100k": "rec_movie", "films, ml-1m": "rec_movie_1m", "games": "rec_game", "albums": "rec_music"}


def _before_and_after(*arms: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"{arm}, {when}", f"{arm.replace('_', ' ')}, {when} RL") for arm in arms for when in ("before", "after")
    )


QUESTIONS = (
    Question(
        "learning",
        "rec_movie",
        rows=(*_before_and_after("IRanker", "DRanker"), Row("random"), Row("popularity")),
        columns=(MRR, NDCG, SEEDS),
        picture=MRR_BARS,
        shows="MRR of both rankers before and after training, of chance and of popularity",
    ),
    Question(
        "recommendation",
        "rec_movie",
        rows=(
            Row("IRanker, after", "IRanker"), Row("DRanker, after", "DRanker"), Row("random"), Row("popularity"),
            Row("TF-IDF"), Row("co-occurrence"), Row("BPR"), Row("SASRec"),
        ),
        columns=tuple(Column(shown, "MRR", file=file) for shown, file in DATA_SETS.items()),
        picture=(Bars(tuple(DATA_SETS)),),
        shows="MRR of rankers and classical recommenders on four data sets",
        corner="MRR",
        gaps=True,
    ),
    Question(
        "kinds",
        "rec_movie",
        rows=(
            Row("DRanker, after", "DRanker"),
            Row("IRanker, after", "IRanker"),
            Row("IRanker_as_many_tokens, after", "IRanker, as many training tokens as the DRanker"),
        ),
        columns=(MRR, Column("training tokens, million"), Column("training, s"), CALLS, PROMPT, RESPONSE),
        picture=MRR_BARS,
        shows="MRR of the DRanker, the IRanker, and the IRanker trained on as many tokens as the DRanker",
        also=("built_in_world",),
    ),
    Question(
        "elimination",
        "rec_movie",
        rows=(
            Row("IRanker, after", "one a round"),
            Row("IRanker_4_of_8_votes, after", "4 a round by 8 votes"),
            Row("IRanker_until_5, after", "one a round, until 5 are left"),
            Row("IRanker_4_of_8_votes_until_5, after", "4 a round by 8 votes, until 5 are left"),
        ),
        columns=(MRR, NDCG, CALLS, PROMPT, RESPONSE),
        picture=MRR_BARS,
        shows="MRR of one ranker that eliminates in four ways",
        also=("built_in_world",),
    ),
    Question(
        "algorithms",
        "algorithms",
        rows=tuple(
            Row(f"{arm}, after", arm.replace("_", ", ", 1).replace("_", " "))
            for arm in (
                "MaxRL_every_answer", "GRPO_every_answer", "MaxRL", "RLOO", "GRPO", "REINFORCE++", "PPO",
                "PPO_published",
            )
        ),
        columns=(MRR, SEEDS, Column("training tokens, million"), Column("training, s")),
        picture=(
            *MRR_BARS, *CURVES,
        ),
        shows="MRR by estimator at the end with intervals, and over training tokens and seconds",
    ),
    Question(
        "conversation",
        "conversation",
        rows=(Row("separate, after", "separate rounds"), Row("conversation, after", "one conversation")),
        columns=(MRR, SEEDS, Column("training tokens, million"), Column("training, s")),
        picture=(
            *MRR_BARS, *CURVES,
        ),
        shows="MRR by the form of rounds at the end with intervals, and over training tokens and seconds",
    ),
    Question(
        "credit",
        "credit",
        rows=(
            Row("each_rank, after", "DRanker, credit for each rank"), Row("whole_list, after", "DRanker, credit for the list"),
            Row("IRanker, after", "IRanker", file="rec_movie"),
        ),
        columns=(MRR, SEEDS, Column("training tokens, million"), Column("training, s")),
        picture=MRR_BARS,
        shows="MRR of direct rankers by credit, and of the IRanker",
    ),
    Question(
        "losses",
        "losses",
        rows=(
            Row("vanilla, after", "clipped ratio (vanilla)"), Row("gspo, after", "GSPO"), Row("cispo, after", "CISPO"),
            Row("dr_grpo, after", "Dr. GRPO"), Row("dynamic_sampling, after", "vanilla, dynamic sampling"),
        ),
        columns=(MRR, SEEDS, Column("training tokens, million"), Column("training, s")),
        picture=(
            *MRR_BARS, *CURVES,
        ),
        shows="MRR by policy loss and with dynamic sampling at the end with intervals, and over training tokens and seconds",
    ),
    Question(
        "rank_ratio",
        "rank_ratio",
        rows=(
            Row("rank_token_ratio, after", "credit for each rank, a ratio for each token"),
            Row("rank_line_ratio, after", "credit for each rank, a ratio for each line (Rank-GRPO)"),
            Row("list_token_ratio, after", "credit for the list, a ratio for each token"),
        ),
        columns=(MRR, SEEDS, Column("training tokens, million"), Column("training, s")),
        picture=(
            *MRR_BARS, *CURVES,
        ),
        shows="MRR by credit and ratio at the end with intervals, and over training tokens and seconds",
    ),
    Question(
        "routing",
        "routing",
        rows=(
            Row("IRanker, after", "IRanker, learned from merits", file="routing_merits"),
            Row("IRanker, after", "IRanker, learned from labels"),
            Row("DRanker, after", "DRanker, learned from labels"),
            Row("most frequent label"), Row("nearest queries' merits"), Row("best single LLM"), Row("oracle"),
        ),
        columns=tuple(Column(task.removeprefix("Router-"), "merit", corner=task) for task in ROUTING),
        picture=(Bars(("Performance", "Balance", "Cost"), unit="merit x 100"),),
        shows="merit of the first choice of rankers and baselines by objective",
        corner="merit by objective",
    ),
    Question(
        "passages",
        "passages",
        rows=(
            Row("DRanker, after", "DRanker"), Row("IRanker, after", "IRanker"), Row("random"), Row("BM25"), Row("TF-IDF"),
        ),
        columns=(MRR, NDCG),
        picture=MRR_BARS,
        shows="MRR of both rankers and of baselines on judged passages",
    ),
    Question(
        "nine",
        "nine",
        rows=tuple(Row(task) for task in (*RECOMMENDATION, *ROUTING, *PASSAGES)),
        columns=(
            Column("one model for all", "{row}", corner="MRR", row="all, after"),
            Column("a model of its own", "{row}", corner="MRR", row="{row}, after"),
            Column("most frequent label", "{row}", corner="MRR", row="most frequent label"),
        ),
        picture=(Bars(("one model for all", "a model of its own", "most frequent label"), together=True),),
        shows="MRR by task of one model for all nine tasks, of a model a task, and of the most frequent label",
        corner="MRR",
    ),
    Question(
        "mini",
        "mini",
        rows=tuple(
            Row(name)
            for name in (
                "IRanker, GRPO, 200 steps", "IRanker, PPO with a critic, 100 steps", "DRanker, GRPO, 200 steps",
                "random", "most frequent label", "BM25",
            )
        ),
        columns=(MRR, NDCG),
        picture=MRR_BARS,
        shows="MRR over all nine tasks of three rankers, of chance, of the most frequent label and of BM25",
    ),
    Question(
        "built_in_world",
        "built_in_world",
        rows=tuple(
            Row(name)
            for name in (
                "IRanker, base", "IRanker, GRPO, 80 steps", "IRanker, PPO with a critic, 150 steps", "DRanker, base",
                "DRanker, GRPO, 80 steps", "DRanker, PPO with a critic, 150 steps", "random", "most frequent label",
            )
        ),
        columns=(MRR, NDCG),
        picture=MRR_BARS,
        shows="MRR of both rankers before and after training by GRPO and PPO, and of baselines",
        old_world=True,
    ),
    Question(
        "answers",
        "answers",
        rows=tuple(
            Row(f"{kind}_{style}, after", f"{ranker}, {style}")
            for kind, ranker in (("iterative", "IRanker"), ("direct", "DRanker"))
            for style in ("names", "labels")
        ),
        columns=(MRR, NDCG, SEEDS),
        picture=MRR_BARS,
        shows="MRR after training with names and with labels",
        old_world=True,
    ),
    Question(
        "thinking",
        "thinking",
        rows=tuple(
            Row(f"{arm}, {when}", f"{shown}, {when} RL")
            for arm, shown in (
                ("at_once", "at once"),
                ("thinking", "thinking"),
                ("at_once_taught", "at once, after a teacher"),
                ("thinking_taught", "thinking, after a teacher"),
            )
            for when in ("before", "after")
        ),
        columns=(MRR, SEEDS, RESPONSE, Column("valid answers")),
        picture=MRR_BARS,
        shows="MRR with and without thoughts, before and after training",
        old_world=True,
    ),
    Question(
        "model_sizes",
        "model_sizes",
        rows=(
            Row("small, after", "46 thousand parameters"),
            Row("medium, after", "182 thousand parameters"),
            Row("large, after", "1.1 million parameters"),
        ),
        columns=(MRR, SEEDS, Column("training, s")),
        picture=MRR_BARS,
        shows="MRR of three sizes after training",
        old_world=True,
    ),
    Question(
        "zero_shot",
        "zero_shot",
        rows=_before_and_after("to_recommendation", "to_routing", "to_passages"),
        columns=(MRR, SEEDS),
        picture=MRR_BARS,
        shows="MRR in a scenario that was not trained on, before and after training on the two others",
        old_world=True,
    ),
    Question(
        "robustness",
        "robustness",
        rows=tuple(
            Row(f"{arm}, after", arm.replace("_", " ").replace("kl", "KL"))
            for arm in (
                "whole", "without_kl", "without_clipping", "free_labels", "free_labels_without_form",
                "free_labels_without_kl",
            )
        ),
        columns=(
            MRR,
            *(
                Column(f"{name}, last fifth", name, corner="{arm}, up to step", row="400")
                for name in ("reward", "valid answers", "entropy", "tokens")
            ),
        ),
        picture=(
            Lines("{arm}, up to step", "", "reward", "step", "mean reward"),
            Lines("{arm}, up to step", "", "entropy", "step", "entropy"),
        ),
        shows="reward and entropy over five times the steps, with the lowest and highest of three seeds",
        old_world=True,
    ),
)  # fmt: skip

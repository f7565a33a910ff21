"""Evaluate a ranker on a task of Ranking-bench.

python eval/eval.py --dataset Rec-Movie --model_path DIR [--data DIR] [--strategy iterative|direct] [--gpu_id 0]
"""

from __future__ import annotations

import argparse

from r1ranker.errors import exit_on_user_error


def main() -> None:
    """Read the arguments and run the evaluation."""
    parser = argparse.ArgumentParser(description="Rank the test rows of a task and measure the rankings.")
    parser.add_argument("--dataset", required=True, help="one of the nine tasks, or all")
    parser.add_argument(
        "--model_path", required=True, nargs="+", help="model directory or hub id; several in one table"
    )
    parser.add_argument(
        "--data", default="ulab-ai/Ranking-bench", help="directory in its layout, or hub id (%(default)s)"
    )
    parser.add_argument("--strategy", choices=["iterative", "direct"], help="default: as the model was trained")
    parser.add_argument("--constrain", choices=["none", "candidates"], help="default: as the model was trained")
    parser.add_argument(
        "--think",
        action=argparse.BooleanOptionalAction,
        help="reason before answering; default: as the model was trained",
    )
    parser.add_argument("--answer_style", choices=["name", "label"], help="default: as the model was trained")
    parser.add_argument(
        "--engine",
        choices=["vllm", "hf", "auto"],
        default="auto",
        help="auto: vllm where it is installed (%(default)s)",
    )
    parser.add_argument("--limit", type=int, help="rows a task at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gpu_id", type=int, default=0)
    parser.add_argument("--output_dir", default="eval/eval_result")
    parser.add_argument("--top_k", type=int, default=0, help="iterative: stop when so few are left (0: rank all)")
    parser.add_argument(
        "--eliminate", type=int, default=1, help="iterative: candidates that go out a round (%(default)s)"
    )
    parser.add_argument("--votes", type=int, default=1, help="iterative: answers sampled a round (%(default)s)")
    parser.add_argument(
        "--baselines", action="store_true", help="all orders that need no language model, not only three"
    )
    parser.add_argument(
        "--interactions",
        help="with --baselines: a directory with RecBole's files, or one .inter file, to count popularity in",
    )
    parser.add_argument(
        "--router_data",
        help="routing: the router_data.csv[.gz] that the rows were made from; quality and cost of what comes first, "
        "with all baselines",
    )
    parser.add_argument("--trec_dir", help="also write TREC run and qrels files here")
    options = parser.parse_args()
    from r1ranker.evaluation.runner import EvaluationOptions, run_evaluation
    from r1ranker.ranking.decode import EliminationSettings

    elimination = EliminationSettings(options.eliminate, options.votes, options.top_k)
    run_evaluation(
        options.dataset,
        options.model_path,
        EvaluationOptions(
            data=options.data, limit=options.limit, seed=options.seed, output_dir=options.output_dir,
            strategy=options.strategy, constrain=options.constrain, think=options.think,
            answer_style=options.answer_style, elimination=elimination, engine=options.engine, gpu=options.gpu_id,
            baselines=options.baselines or options.interactions is not None or options.router_data is not None,
            interactions=options.interactions, router_data=options.router_data,
        ),
        trec_dir=options.trec_dir,
    )  # fmt: skip


if __name__ == "__main__":
    exit_on_user_error(main)

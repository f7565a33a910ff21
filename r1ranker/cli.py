"""The command line: r1ranker prepare | init-model | sft | train | eval | compare | report | experiment | export | replay. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from r1ranker.errors import UserError, exit_on_user_error

app = typer.Typer(
    help="Make a language model rank: train it with reinforcement learning, measure it, use it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Files = Annotated[list[str], typer.Option("--data", help="training parquet; may be given several times")]


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Option(
            "--source",
            "--from",
            help="a hub data set or directory in Ranking-bench's layout; a directory with its raw sources; a file of "
            "one's own (.jsonl, .csv, .parquet); `trec`; or `toy`",
        ),
    ] = "ulab-ai/Ranking-bench",
    output: Annotated[str, typer.Option(help="directory for direct_ranking/, iterative_ranking/ and bench/")] = "data",
    answer_style: Annotated[str, typer.Option(help="name | label")] = "name",
    think: Annotated[bool, typer.Option(help="reason before answering")] = True,
    task: Annotated[list[str] | None, typer.Option(help="only these tasks; of one's own data: its name")] = None,
    seed: Annotated[int, typer.Option(help="of splits, pools and orders")] = 42,
    test_share: Annotated[float, typer.Option(help="of users or queries, where the source has no split")] = 0.2,
    cold_start: Annotated[
        bool, typer.Option(help="also write sft.parquet: the answer's format with random answers")
    ] = False,
    teacher: Annotated[
        bool,
        typer.Option(help="with --cold-start: thoughts and answers of the most frequent label instead of random ones"),
    ] = False,
    tokenizer: Annotated[str | None, typer.Option(help="model directory; prompts are measured in its tokens")] = None,
    max_prompt_length: Annotated[int, typer.Option(help="tokens; the share of prompts over it is shown")] = 1400,
    history: Annotated[
        list[str] | None, typer.Option(help="raw: items of a user's history (20), or TASK=N for one task")
    ] = None,
    candidates: Annotated[int, typer.Option(help="raw and trec: of a request")] = 20,
    users: Annotated[int, typer.Option(help="raw: of a recommendation task; 0: all")] = 657,
    positions: Annotated[int, typer.Option(help="raw: requests a user at most, spread over its history")] = 1,
    pools: Annotated[
        int, typer.Option(help="raw: training rows of a recommendation request, each with other candidates")
    ] = 1,
    recbole: Annotated[
        list[str] | None, typer.Option(help="raw: TASK=NAME of another RecBole data set, such as Rec-Movie=ml-100k")
    ] = None,
    test_rows: Annotated[
        int, typer.Option(help="raw, own data and trec: of a user or query at most, evenly spread; 0: all")
    ] = 0,
    pool_sizes: Annotated[
        str,
        typer.Option(help="raw, own data and trec: LOW-HIGH, of the iterative rows' pools [all]", show_default=False),
    ] = "",
    merits: Annotated[
        bool, typer.Option(help="raw: routing's training rows have every LLM's merit as its grade")
    ] = False,
    template: Annotated[str | None, typer.Option(help="own data: a YAML file with the task's words")] = None,
    shuffle: Annotated[bool, typer.Option(help="own data: deal each pool's order anew")] = False,
    queries: Annotated[str | None, typer.Option(help="trec: id<tab>text")] = None,
    collection: Annotated[str | None, typer.Option(help="trec: id<tab>text, or JSON lines")] = None,
    run: Annotated[str | None, typer.Option(help="trec: the candidates of each query")] = None,
    qrels: Annotated[str | None, typer.Option(help="trec: graded judgments")] = None,
    size: Annotated[int, typer.Option(help="toy: direct training rows a task")] = 100,
) -> None:
    """Write training parquet (direct and iterative, train and test) from a ranking data set, raw sources or one's own data."""
    from r1ranker.data.prepare import PrepareOptions
    from r1ranker.data.prepare import prepare as prepare_data
    from r1ranker.data.sources.trec import TrecFiles

    named = {"--queries": queries, "--collection": collection, "--run": run, "--qrels": qrels}
    missing = [name for name, value in named.items() if value is None]
    if 0 < len(missing) < len(named) or (missing and source == "trec"):
        raise UserError(f"--from trec: no {', '.join(missing)}; all of {', '.join(named)} are wanted")
    trec = None if missing else TrecFiles(str(queries), str(collection), str(run), str(qrels))
    prepare_data(
        PrepareOptions(
            source, output, answer_style, think, task, seed, test_share, cold_start, tokenizer, max_prompt_length,
            size, history or (), candidates, users, positions, recbole or (), template, shuffle, trec, test_rows, pool_sizes, merits, teacher, pools,
        )
    )  # fmt: skip


@app.command("init-model")
def init_model_command(
    output: Annotated[str, typer.Argument(help="directory to write")],
    data: Files,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    intermediate_size: Annotated[int, typer.Option(help="0: four times the hidden size")] = 0,
    max_positions: int = 4096,
    tie: Annotated[bool, typer.Option(help="share input and output embeddings")] = True,
    vocab_size: int = 2000,
    title_tokens: Annotated[bool, typer.Option(help="a token for every candidate, item and common line")] = False,
    title_words: Annotated[bool, typer.Option(help="titles that share words begin alike")] = False,
    seed: int = 1,
) -> None:
    """Build a small base model with random weights, and a tokenizer trained on the data."""
    from r1ranker.model.init import ModelSize, init_model

    size = ModelSize(hidden_size, layers, heads, kv_heads, intermediate_size, max_positions, tie)
    parameters = init_model(output, data, size, vocab_size, title_tokens, title_words, seed)
    typer.echo(f"{output}: {parameters:,} parameters")


@app.command()
def sft(
    model: Annotated[str, typer.Option(help="model directory or hub id")],
    data: Files,
    output: Annotated[str, typer.Option(help="directory to write")],
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 1e-3,
    warmup_steps: int = 10,
    max_tokens: Annotated[int, typer.Option(help="tokens a micro-batch")] = 16384,
    seed: int = 1,
) -> None:
    """Fine-tune on (prompt, completion) parquet: the cold start that teaches the answer's format."""
    from r1ranker.trainer.sft import SFTSettings, fine_tune

    for name, value in (("--steps", steps), ("--batch-size", batch_size)):
        if value < 1:
            raise UserError(f"{name}: found {value}; at least 1 is wanted")
    if seed < 0 or not 0 < lr < float("inf"):
        raise UserError(f"--seed {seed}, --lr {lr}: a seed of at least 0 and a learning rate over 0 are wanted")
    losses = fine_tune(model, data, output, SFTSettings(steps, batch_size, lr, warmup_steps, max_tokens, seed))
    typer.echo(f"{output}: loss {losses[0]:.3f} -> {losses[-1]:.3f} over {steps} steps")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config_name: Annotated[
        str | None, typer.Option(help="a file of configs/ without .yaml [published; of a run's directory: its own]")
    ] = None,
    config_path: Annotated[str | None, typer.Option(help="another directory of configs, or a run's directory")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print what would run and the memory it needs, and end")
    ] = False,
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="with --dry-run: GiB of each GPU that is thought of [this machine's]", show_default=False),
    ] = None,
    host_memory: Annotated[
        float | None, typer.Option(help="with --dry-run: GiB of each machine [this one's]", show_default=False)
    ] = None,
) -> None:
    """Train with PPO, GRPO, RLOO or REINFORCE++: r1ranker train [--config-name NAME] key=value ..."""
    from r1ranker.trainer.config.load import load_config, own_config

    config = load_config(config_name or own_config(config_path) or "published", context.args, config_path)
    for name, value in (("--gpu-memory", gpu_memory), ("--host-memory", host_memory)):
        if value is not None and not (dry_run and 0 < value < float("inf")):
            raise UserError(f"{name}: found {value:g}; GiB over 0, and --dry-run, are wanted")
    if dry_run:
        from r1ranker.trainer.dry_run import dry_run as describe

        describe(config, gpu_memory, host_memory)
        return
    from r1ranker.trainer.fit import fit

    typer.echo(f"trained actor: {fit(config)}")


@app.command("eval")
def evaluate_command(
    dataset: Annotated[str, typer.Option(help="one of the nine tasks, or all")],
    model_path: Annotated[str, typer.Option(help="model directory or hub id")],
    data: Annotated[
        str, typer.Option(help="a directory in Ranking-bench's layout, or a hub data set")
    ] = "ulab-ai/Ranking-bench",
    strategy: Annotated[Literal["iterative", "direct"] | None, typer.Option()] = None,
    limit: Annotated[int | None, typer.Option(help="rows a task at most")] = None,
    engine: Annotated[str, typer.Option(help="vllm | hf | auto: vllm where it is installed")] = "auto",
    output_dir: str = "eval/eval_result",
    router_data: Annotated[
        str | None,
        typer.Option(
            help="routing: the router_data.csv[.gz] that the rows were made from; quality and cost of what comes first, "
            "with all baselines"
        ),
    ] = None,
) -> None:
    """Rank the test rows of a task and report MRR, NDCG and valid answers; eval/eval.py takes the same and more."""
    from r1ranker.evaluation.runner import EvaluationOptions, run_evaluation

    options = EvaluationOptions(
        data=data, strategy=strategy, limit=limit, output_dir=output_dir, engine=engine,
        baselines=router_data is not None, router_data=router_data,
    )  # fmt: skip
    run_evaluation(dataset, model_path, options)


@app.command("report")
def report_command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="run directories, metrics.jsonl, evaluation results (.json), or directories that hold them"
        ),
    ],
    output: Annotated[str, typer.Option(help="HTML file to write")] = "report.html",
) -> None:
    """Write training curves, results, errors and examples as one HTML file that needs no network."""
    from r1ranker.report import write_report

    write_report(inputs, output)
    typer.echo(output)


@app.command("experiment")
def experiment_command(
    name: Annotated[str, typer.Argument(help="a file of configs/experiments/ without .yaml, or a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as steps=20 or model.path=DIR")] = None,
    output: Annotated[str | None, typer.Option(help="where everything goes [checkpoints/NAME]")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="trainings side by side, each with its share of the cores")] = 1,
) -> None:
    """Run one of the paper's experiments: data, models, training, evaluation and a table; a second call goes on."""
    from pathlib import Path

    from r1ranker.experiments.run import run_experiment
    from r1ranker.experiments.spec import load_experiment

    run_experiment(load_experiment(name, overrides or []), Path(output or f"checkpoints/{Path(name).stem}"), jobs)


@app.command("export")
def export_command(
    state: Annotated[str, typer.Argument(help="a training state: RUN/state/step_N")],
    output: Annotated[str, typer.Argument(help="directory to write")],
) -> None:
    """Write the actor of a training state as a Hugging Face directory."""
    from r1ranker.trainer.checkpoint.export import export_actor

    step = export_actor(state, output)
    typer.echo(f"{output}: the actor of step {step}")


@app.command("replay")
def replay_command(
    file: Annotated[str, typer.Argument(help="step_N.jsonl of a run's bad_steps/")],
    model: Annotated[str, typer.Option(help="model directory or hub id; the run's own")],
) -> None:
    """Compute a bad step's samples anew, and show which of their numbers are not finite."""
    from r1ranker.trainer.monitoring.replay import replay

    for line in replay(file, model):
        typer.echo(line)


@app.command("compare")
def compare_command(
    first: Annotated[str, typer.Argument(help="result file of an evaluation")],
    second: Annotated[str, typer.Argument(help="another one, of the same queries")],
    metric: Annotated[str, typer.Option(help="mrr, hit@K or ndcg@K")] = "mrr",
    seed: Annotated[int, typer.Option(help="of the randomisation")] = 0,
) -> None:
    """Whether two evaluations differ by more than chance: means and a paired randomisation test, task by task."""
    from r1ranker.evaluation.results import read_result
    from r1ranker.evaluation.table import print_comparison

    print_comparison(read_result(first), read_result(second), metric, seed)


def main() -> None:
    """Entry point; a user's mistake ends with one line and exit code 2."""
    exit_on_user_error(_run)


def _run() -> None:
    try:
        result = app(standalone_mode=False)  # on its own it puts a usage error on several lines
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        say = getattr(error, "format_message", None)  # a usage error; its class is typer's own affair
        if say is None:
            raise
        raise UserError(f"{say()} (see --help)" if say() else "a command is wanted; they are shown above") from error
    if isinstance(result, int):
        sys.exit(result)


if __name__ == "__main__":
    main()

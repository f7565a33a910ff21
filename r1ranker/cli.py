"""The command line: r1ranker prepare | init-model | sft | train | eval. Heavy imports wait until a command needs them."""

from __future__ import annotations

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
        str, typer.Option(help="`toy`, a directory in Ranking-bench's layout, or a hub data set")
    ] = "ulab-ai/Ranking-bench",
    output: Annotated[str, typer.Option(help="directory for direct_ranking/ and iterative_ranking/")] = "data",
    answer_style: Annotated[str, typer.Option(help="name | label")] = "name",
    think: Annotated[bool, typer.Option(help="reason before answering")] = True,
    size: Annotated[int, typer.Option(help="toy: direct training rows a task")] = 100,
    seed: Annotated[int, typer.Option(help="of sub-pools and the toy world's rows")] = 42,
    task: Annotated[list[str] | None, typer.Option(help="only these tasks; may be given several times")] = None,
    cold_start: Annotated[
        bool, typer.Option(help="also write sft.parquet: the answer's format with random answers")
    ] = False,
) -> None:
    """Write training parquet (direct and iterative, train and test) from a ranking data set."""
    from r1ranker.data.generate import prepare_all

    prepare_all(source, output, answer_style, think, size, seed, task, cold_start)


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
    title_tokens: Annotated[bool, typer.Option(help="every candidate and history item becomes one token")] = False,
    seed: int = 1,
) -> None:
    """Build a small base model with random weights, and a tokenizer trained on the data."""
    from r1ranker.model.init import ModelSize, init_model

    size = ModelSize(hidden_size, layers, heads, kv_heads, intermediate_size, max_positions, tie)
    parameters = init_model(output, data, size, vocab_size, title_tokens, seed)
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
    config_name: Annotated[str, typer.Option(help="a file of configs/ without .yaml")] = "published",
    config_path: Annotated[str | None, typer.Option(help="another directory of configs")] = None,
) -> None:
    """Train with PPO, GRPO, RLOO or REINFORCE++: r1ranker train [--config-name NAME] key=value ..."""
    from r1ranker.trainer.config_load import load_config

    config = load_config(config_name, context.args, config_path)
    from r1ranker.trainer.loop import fit

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
) -> None:
    """Rank the test rows of a task and report MRR, NDCG and valid answers; eval/eval.py takes the same and more."""
    from r1ranker.evaluation.runner import run_evaluation

    run_evaluation(dataset, model_path, data=data, strategy=strategy, limit=limit, output_dir=output_dir, engine=engine)


def main() -> None:
    """Entry point; a user's mistake ends with one line and exit code 2."""
    exit_on_user_error(app)


if __name__ == "__main__":
    main()

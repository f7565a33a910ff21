"""Commands that make models: init-model, sft, train, export and replay."""

from __future__ import annotations

from typing import Annotated

import typer

from r1ranker.cli.options import Dtype, TrainingFiles
from r1ranker.errors import UserError, check_at_least
from r1ranker.lean_imports import import_transformers

TOKENIZER = "Tokenizer"


def fetch_model(
    source: Annotated[str, typer.Argument(metavar="NAME | FILE.gguf", help="a model of the catalogue, or a GGUF file")],
    output: Annotated[str, typer.Argument(help="directory to write, which is not there yet")],
) -> None:
    """Fetch a pretrained model, or unpack a GGUF file.

    The catalogue: SmolLM2-135M-Instruct, SmolLM2-360M-Instruct, Qwen2.5-0.5B-Instruct, Qwen2.5-3B-Instruct.
    """
    from pathlib import Path

    from r1ranker.model.fetch import fetch_model as fetch

    origin = fetch(source, Path(output))
    print(f"{output}: from {origin}")


def init_model(
    output: Annotated[str, typer.Argument(help="directory to write")],
    data: TrainingFiles,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    intermediate_size: Annotated[int, typer.Option(help="0: four times the hidden size")] = 0,
    max_positions: int = 4096,
    tie: Annotated[bool, typer.Option(help="share input and output embeddings")] = True,
    vocab_size: Annotated[int, typer.Option(rich_help_panel=TOKENIZER)] = 2000,
    title_tokens: Annotated[
        bool, typer.Option(help="a token for every candidate, item and common line", rich_help_panel=TOKENIZER)
    ] = False,
    title_words: Annotated[
        bool, typer.Option(help="titles that share words begin alike", rich_help_panel=TOKENIZER)
    ] = False,
    turn_tokens: Annotated[
        bool,
        typer.Option(
            help="a token for what data.rounds=conversation says between eliminations", rich_help_panel=TOKENIZER
        ),
    ] = False,
    seed: int = 1,
) -> None:
    """Build a small untrained model with a tokenizer of its own."""
    from r1ranker.model.init import ModelSize
    from r1ranker.model.init import init_model as build

    size = ModelSize(
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate_size=intermediate_size,
        max_positions=max_positions,
        tie_embeddings=tie,
    )
    parameters = build(
        output,
        data,
        size,
        vocab_size=vocab_size,
        title_tokens=title_tokens,
        title_words=title_words,
        turn_tokens=turn_tokens,
        seed=seed,
    )
    typer.echo(f"{output}: {parameters:,} parameters")


def sft(
    model: Annotated[str, typer.Option(help="model directory or hub id")],
    data: TrainingFiles,
    output: Annotated[str, typer.Option(help="directory to write")],
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 1e-3,
    warmup_steps: int = 10,
    max_tokens: Annotated[int, typer.Option(help="tokens a micro-batch")] = 16384,
    dtype: Dtype = "auto",
    seed: int = 1,
) -> None:
    """Fine-tune on prompts and completions (the cold start).

    It teaches the format of an answer.
    `r1ranker prepare --cold-start` writes the rows (sft.parquet).
    """
    import_transformers()
    from r1ranker.trainer.sft import SFTSettings, fine_tune

    check_at_least("--steps", steps, 1)
    check_at_least("--batch-size", batch_size, 1)
    if seed < 0 or not 0 < lr < float("inf"):
        raise UserError(f"--seed {seed}, --lr {lr}: a seed of at least 0 and a learning rate over 0 are wanted")
    settings = SFTSettings(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=warmup_steps,
        max_tokens=max_tokens,
        seed=seed,
        dtype=dtype,
    )
    losses = fine_tune(model, data, output, settings)
    typer.echo(f"{output}: loss {losses[0]:.3f} -> {losses[-1]:.3f} over {steps} steps")


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="settings, as in algorithm.adv_estimator=grpo", show_default=False),
    ] = None,
    config_name: Annotated[
        str | None, typer.Option(help="a file of configs/ without .yaml (published; of a run's directory: its own)")
    ] = None,
    config_path: Annotated[str | None, typer.Option(help="another directory of configs, or a run's directory")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print what would run and the memory it needs, and end")
    ] = False,
    gpu_memory: Annotated[
        float | None, typer.Option(help="with --dry-run: GiB of each GPU that is thought of (this machine's)")
    ] = None,
    host_memory: Annotated[float | None, typer.Option(help="with --dry-run: GiB of each machine (this one's)")] = None,
) -> None:
    """Train a ranker with PPO, GRPO, RLOO or REINFORCE++."""
    from r1ranker.trainer.config.load import find_run_config, load_config

    config = load_config(config_name or find_run_config(config_path) or "published", overrides or (), config_path)
    for name, value in (("--gpu-memory", gpu_memory), ("--host-memory", host_memory)):
        if value is not None and not (dry_run and 0 < value < float("inf")):
            raise UserError(f"{name}: found {value:g}; GiB over 0, and --dry-run, are wanted")
    if dry_run:
        import_transformers()
        from r1ranker.trainer.dry_run import dry_run as describe

        describe(config, gpu_memory, host_memory)
        return
    from r1ranker.trainer.workers.ray_session import begin_ray

    with begin_ray(config):
        import_transformers()
        from r1ranker.trainer.fit import fit

        typer.echo(f"trained actor: {fit(config)}")


def export(
    state: Annotated[str, typer.Argument(help="a training state: RUN/state/step_N")],
    output: Annotated[str, typer.Argument(help="directory to write")],
) -> None:
    """Write the actor of a training state as a model directory."""
    from r1ranker.trainer.checkpoint.export import export_actor

    step = export_actor(state, output)
    typer.echo(f"{output}: the actor of step {step}")


def replay(
    file: Annotated[str, typer.Argument(help="step_N.jsonl of a run's bad_steps/")],
    model: Annotated[str, typer.Option(help="model directory or hub id; the run's own")],
) -> None:
    """Show which numbers of a bad step are not finite."""
    from r1ranker.trainer.monitoring.replay import replay as compute_again

    for line in compute_again(file, model):
        typer.echo(line)

"""What a run would do, said without doing it; where memory runs out, the setting to lower; and help that loads nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import run_command

from r1ranker.errors import UserError
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.dry_run import dry_run

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "transformers", "numpy", "hydra")


def overrides(toy: Path, model: str, output: Path, *more: str) -> list[str]:
    return [
        f"data.train_files={toy}/iterative_ranking/train.parquet", f"data.val_files={toy}/iterative_ranking/test.parquet",
        f"actor_rollout_ref.model.path={model}", f"critic.model.path={model}", f"trainer.default_local_dir={output}",
        "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.rollout.n=4",
        "data.max_prompt_length=400", "data.max_response_length=16", "data.val_max_samples=9", "trainer.total_training_steps=2", "trainer.val_before_train=false", *more,
    ]  # fmt: skip


def call(*command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def train(*arguments: str, code: int = 0) -> tuple[str, str]:
    return run_command("train", "--config-name", "quickstart", *arguments, code=code)


def test_a_dry_run_says_what_would_run_and_starts_nothing(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    more = (
        "algorithm.adv_estimator=gae", "actor_rollout_ref.actor.use_kl_loss=true", "trainer.executor=ray", "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.rollout.placement=separate", "actor_rollout_ref.rollout.n_workers=3",
    )  # fmt: skip
    printed, _ = train("--dry-run", *overrides(toy, tiny_model, tmp_path / "run", *more))
    for line in (
        "actor, reference, critic", "3 with Ray", "8 a step, of ", "32 a step (4 a prompt), of 16 tokens at most", "2 a step, of 4 prompts",
        "4,096 tokens of prompt and response together",
        "update of the actor", "update of the critic", "rollout process", "critic: Adam", "reference: weights", "activations", "logits",
        "engine: cache", "gradient checkpointing",
    ):  # fmt: skip
        assert line in printed, line
    assert not (tmp_path / "run").exists()


def test_a_dry_run_knows_how_long_conversations_become(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    more = "data.rounds=conversation", "data.think=false", "data.answer_style=label"
    printed, _ = train("--dry-run", *overrides(toy, tiny_model, tmp_path / "run", *more))
    assert re.search(
        r"conversations +\d+ turns of the first prompt, with \d+ tokens between answers; \d+ of them fit", printed
    )
    apart, _ = train("--dry-run", *overrides(toy, tiny_model, tmp_path / "run", *more[1:]))
    (whole,), (alone,) = (re.findall(r"tokens +([\d,]+) a step at most", text) for text in (printed, apart))
    assert int(whole.replace(",", "")) > int(alone.replace(",", ""))
    caches = [re.findall(r"engine: cache +(\S+) (\w+)", text)[0] for text in (printed, apart)]
    assert caches[0] != caches[1]


def test_a_kl_loss_that_holds_nothing_back_is_said(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    for kind, said in (("k1", True), ("kl", True), ("k2", False), ("k3", False)):
        more = ("actor_rollout_ref.actor.use_kl_loss=true", f"actor_rollout_ref.actor.kl_loss_type={kind}")
        printed, _ = train("--dry-run", *overrides(toy, tiny_model, tmp_path / "run", *more))
        assert ("the gradient of k1 is 0 in expectation" in printed) == said, kind


def test_a_dry_run_refuses_what_training_refuses(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    for wrong, words in (
        ("data.train_batch_size=96000", "data.train_batch_size: 96000"),
        (f"data.train_files={tmp_path}/gone.parquet", "gone.parquet"),
        (f"custom_reward_function.path={tmp_path}/gone.py", "gone.py"),
    ):
        _, error = train(
            "--dry-run", *overrides(toy, tiny_model, tmp_path, wrong, "actor_rollout_ref.actor.ppo_mini_batch_size=8"), code=2,
        )  # fmt: skip
        assert words in error
        assert len(error.splitlines()) == 1


def test_a_dry_run_reckons_gpus_and_hosts_that_are_only_thought_of(
    toy: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = (
        "trainer.executor=ray",
        "trainer.n_gpus_per_node=4",
        "actor_rollout_ref.actor.fsdp_config.param_offload=true",
    )
    run = overrides(toy, tiny_model, tmp_path / "run", *away)
    config = load_config("quickstart", run)
    dry_run(config, gpu_memory=24, host_memory=64)
    printed = capsys.readouterr().out
    for line in (
        "1 x 4 with Ray, a GPU each", "Memory a GPU", "Host memory of a machine, 4 processes and the driver together",
        "actor: gradients", "file being written", "a GPU: ", "there is 24.0 GiB: fits", "host memory: ", "there is 64.0 GiB: fits",
    ):  # fmt: skip
        assert line in printed, line
    for sizes, words in (((24, 2), "host memory: "), ((1, 64), "a GPU: "), ((None, 2), "host memory: ")):
        with pytest.raises(UserError, match=words):
            dry_run(config, *sizes)
    _, error = train("--dry-run", "--gpu-memory", "24", "--host-memory", "2", *run, code=2)
    assert error.startswith("error: host memory: ")
    assert len(error.splitlines()) == 1
    assert "--host-memory: found 5; " in train("--host-memory", "5", *run, code=2)[1]
    assert not (tmp_path / "run").exists()


OUT_OF_MEMORY = """
import re, resource, sys
from pathlib import Path
from r1ranker.cli import main
from r1ranker.rollout.hf import HFEngine
from r1ranker.trainer.learners.policy import Policy

def limited(method):
    def call(self, *arguments):
        data = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (data + 4 * 2**20, resource.RLIM_INFINITY))
        return method(self, *arguments)
    return call

place, sys.argv[1:] = sys.argv[1], sys.argv[2:]
owner, name = {"update": (Policy, "update"), "generation": (HFEngine, "session")}[place]
setattr(owner, name, limited(getattr(owner, name)))
main()
"""


@pytest.mark.parametrize(
    ("place", "key", "words"),
    [
        ("update", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu: found 16384", "the update of the actor ran out of memory"),
        ("generation", "actor_rollout_ref.rollout.max_num_seqs: found 256", "generation ran out of memory"),
    ],
)  # fmt: skip
def test_where_memory_runs_out_the_setting_to_lower_is_named(
    place: str, key: str, words: str, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    script = tmp_path / "limited.py"
    script.write_text(OUT_OF_MEMORY)
    # so large that what earlier parts of the step gave back cannot hold it
    large = ["data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=64"]
    done = call(
        str(script),
        place,
        "train",
        "--config-name",
        "quickstart",
        *overrides(toy, tiny_model, tmp_path / "run", *large),
        code=1,
    )
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: step 1: {key}; {words}")
    assert "device has " in error
    assert "; try " in error
    assert "no actor was saved yet" in error


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    script = (
        "import sys; from r1ranker.cli import main; sys.argv = ['r1ranker', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    )
    assert call("-c", script, *arguments).stdout.splitlines()[-1] == "loaded []"

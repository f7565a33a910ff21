"""The configuration: veRL's overrides work, and what cannot work is refused in one line before anything is loaded."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from r1ranker.errors import UserError
from r1ranker.experiments.run import run_experiment
from r1ranker.experiments.spec import load_experiment
from r1ranker.experiments.training import training_config
from r1ranker.quickstart import quickstart
from r1ranker.trainer.config.load import BUILT_IN, load_config, to_dict, to_yaml
from r1ranker.trainer.config.schema import Config

PATHS = [
    "data.train_files=t.parquet",
    "data.val_files=v.parquet",
    "actor_rollout_ref.model.path=m",
    "critic.model.path=m",
]


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN.glob("*.yaml")))
def test_every_config_loads(name: str) -> None:
    assert isinstance(load_config(name, PATHS), Config)


def test_the_published_config_holds_the_published_values() -> None:
    config = load_config("published", PATHS)
    actor = config.actor_rollout_ref.actor
    assert config.algorithm.adv_estimator == "gae"
    assert (actor.optim.lr, config.critic.optim.lr) == (1e-6, 2e-6)
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, actor.ppo_micro_batch_size) == (64, 32, 8)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (1400, 1024)
    assert (actor.use_kl_loss, actor.kl_loss_coef, config.algorithm.use_kl_in_reward) == (True, 0.001, False)
    assert (config.algorithm.gamma, config.algorithm.lam) == (1.0, 1.0)
    assert (config.trainer.total_training_steps, config.trainer.total_epochs) == (1501, 3)
    assert config.output_dir == "checkpoints/Ranking-FM/iterative_ranking"


def test_overrides_in_verls_words_work_as_they_stand() -> None:
    config = load_config(
        "published",
        [
            *PATHS,
            "data.val_batch_size=640",
            "actor_rollout_ref.model.use_remove_padding=True",
            "actor_rollout_ref.actor.use_dynamic_bsz=True",
            "actor_rollout_ref.actor.optim.lr=1e-6",
            "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size=8",
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.4",
            "actor_rollout_ref.ref.log_prob_micro_batch_size=8",
            "critic.model.fsdp_config.param_offload=True",
            "algorithm.kl_ctrl.kl_coef=0.001",
            "+trainer.val_before_train=True",
            "trainer.default_hdfs_dir=null",
            "trainer.logger=[wandb]",
            "data.train_files=[a.parquet,b.parquet]",
        ],
    )
    assert config.actor_rollout_ref.actor.kl_loss_type == "k3"
    assert list(config.data.train_files) == ["a.parquet", "b.parquet"]
    assert config.trainer.logger == ["wandb"]


REFUSED = {
    "actor_rollout_ref.rollout.temprature=1": "actor_rollout_ref.rollout.temperature",
    "algorithm.adv_estimater=grpo": "algorithm.adv_estimator",
    "data.train_batch_size=many": "an integer is wanted",
    "trainer.val_before_train=perhaps": "true or false is wanted",
    "actor_rollout_ref.actor.optim.lr=fast": "a number is wanted",
    "data.train_batch_size": "key=value is wanted",
    "algorithm.adv_estimator=gea": "did you mean 'gae'",
    "actor_rollout_ref.actor.ppo_mini_batch_size=30": "30 does not divide data.train_batch_size 64",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1000": "cannot hold one sequence",
    "critic.model.path=null": "needs a critic model",
    "actor_rollout_ref.model.path=null": "actor_rollout_ref.model.path: found nothing",
    "data.val_files=null": "data.val_files: found nothing",
    "algorithm.adv_estimator=grpo": "at least 2 are wanted",
    "actor_rollout_ref.rollout.top_p=0.9": "top_p must be 1",
    "actor_rollout_ref.rollout.temperature=0": "over 0",
    "trainer.executor=local": "executor=ray is wanted",
    "algorithm.use_kl_in_reward=true": "in one place",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=3": "3 does not divide trainer.n_gpus_per_node 4",
    "actor_rollout_ref.rollout.name=vlm": "one of hf, vllm is wanted",
    "actor_rollout_ref.rollout.placement=apart": "colocated, separate",
    "algorithm.rollout_correction.rollout_is=tokens": "did you mean 'token'",
    "algorithm.rollout_correction.rollout_is_threshold=0": "over 0",
    "actor_rollout_ref.model.use_remove_padding=false": "always packed",
    "actor_rollout_ref.actor.loss_agg_mode=mean": "token-mean",
    "trainer.n_gpus_per_node=0": "at least 1",
    "reward.timeout=5": "at least one is wanted",
    "reward.timeout=0": "seconds over 0, or null, are wanted",
    "reward.max_failure_rate=1": "from 0 to under 1",
    "actor_rollout_ref.actor.use_dynamic_bsz=false trainer.n_gpus_per_node=3": "not a multiple of the 3 processes",
    "actor_rollout_ref.rollout.constrain=pool": "none, candidates",
    "actor_rollout_ref.rollout.eliminate_to=1": "at least 2 candidates are wanted",
    "actor_rollout_ref.rollout.every_answer=true": "every_answer wants candidates",
    "trainer.default_hdfs_dir=hdfs://x": "only null",
    "trainer.logger=[tensorbord]": "did you mean 'tensorboard'",
    "actor_rollout_ref.actor.optim.lr=-1": "over 0",
    "actor_rollout_ref.actor.optim.lr=nan": "over 0",
    "actor_rollout_ref.actor.optim.weight_decay=-0.1": "at least 0",
    "critic.optim.min_lr_ratio=-1": "from 0 to 1",
    "critic.grad_clip=-1": "critic.grad_clip: found -1",
    "critic.ppo_epochs=0": "at least 1",
    "critic.cliprange_value=0": "over 0",
    "actor_rollout_ref.actor.clip_ratio_high=-0.5": "over 0",
    "actor_rollout_ref.rollout.val_kwargs.temperature=-1": "val_kwargs",
    "actor_rollout_ref.rollout.val_kwargs.top_p=0": "val_kwargs",
    "data.val_max_samples=0": "at least 1",
    "data.val_batch_size=-5": "at least 1",
    "trainer.seed=-1": "at least 0",
    "trainer.experiment_name='${nope}'": "nope",
    "trainer.logger=[wandb] trainer.project_name=a:b": "none of / \\ # ? % :",
    f"trainer.logger=[wandb] trainer.project_name={'x' * 129}": "at most 128 characters",
}


@pytest.mark.parametrize("override", sorted(REFUSED))
def test_what_cannot_work_is_refused_in_one_line(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("published", [*PATHS, *override.split()])
    message = str(caught.value)
    assert REFUSED[override] in message
    assert "\n" not in message


def test_an_adaptive_kl_that_could_change_its_sign_is_refused() -> None:
    for value in ("horizon=10", "target_kl=0"):
        with pytest.raises(UserError, match="horizon"):
            load_config("published", [*PATHS, "algorithm.kl_ctrl.type=adaptive", f"algorithm.kl_ctrl.{value}"])


def test_a_config_file_with_an_unknown_key_or_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("trainer: {experimnt_name: x}\n")
    with pytest.raises(UserError, match=r"trainer.experimnt_name.*did you mean 'trainer.experiment_name'"):
        load_config("own", PATHS, str(tmp_path))
    (tmp_path / "odd.yaml").write_text("trainer: {a: [1\n")
    with pytest.raises(UserError, match=r"odd\.yaml"):
        load_config("odd", PATHS, str(tmp_path))
    with pytest.raises(UserError, match="published"):
        load_config("publishd", PATHS)


def test_a_section_given_a_plain_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("trainer: 3\n")
    with pytest.raises(UserError, match="trainer"):
        load_config("own", PATHS, str(tmp_path))


NAMES = [
    "/home/Jürgen's/数据 (dt=2026-01-01), [a] {b: c} #1 ~!$HOME \"q\" %s a\\", " a ", "a,b", "[a]", "1e3", "true", "null", "007", ".5", "1_000",
    "${oc.env:HOME}", "\\${x}\\", "glob(*)", "a\nb\x85",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_what_it_is_whatever_it_holds(name: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data.train_files": [name, f"{name}/b"],
        "data.val_files": f"{name}/test.parquet",
        "actor_rollout_ref.model.path": name,
        "critic.model.path": name,
        "trainer.experiment_name": name,
        "trainer.n_gpus_per_node": 2,
        "trainer.max_actor_ckpt_to_keep": None,
    }
    config = load_config("published", ["trainer.n_gpus_per_node=3"], values=values)
    assert config.data.train_files == [name, f"{name}/b"]
    assert config.data.val_files == f"{name}/test.parquet"
    assert (config.actor_rollout_ref.model.path, config.critic.model.path) == (name, name)
    assert config.output_dir == f"checkpoints/Ranking-FM/{name}"
    assert (config.trainer.n_gpus_per_node, config.trainer.max_actor_ckpt_to_keep) == (
        3,
        None,
    )  # an override comes after
    assert to_dict(config)["trainer"]["experiment_name"] == name
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config("config", config_path=str(tmp_path)) == config


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_that_a_config_looks_up_is_what_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1RANKER_TEST_NAME", name)
    given = ["trainer.experiment_name=${oc.env:R1RANKER_TEST_NAME}"]
    given += ["data.train_files=${oc.env:R1RANKER_TEST_NAME}/train.parquet"]
    config = load_config("published", [*PATHS, *given])
    assert (config.trainer.experiment_name, config.data.train_files) == (name, f"{name}/train.parquet")


@pytest.mark.parametrize("name", ["1e3", "true", "False", "0010", "1_000", "007", ".5", "-1", "nan", "0x10"])
def test_what_looks_like_a_number_is_text_where_text_is_set(name: str) -> None:
    config = load_config("published", [*PATHS, f"trainer.experiment_name={name}", f"data.train_files={name}"])
    assert (config.trainer.experiment_name, config.data.train_files) == (name, name)


@pytest.mark.parametrize(
    "name",
    ["/home/Jürgen/x", "dt=2026-01-01", "数据", "a,b", "(a)", "{a}", "it's", '"x', "a#b", "~a", "a!", "a}", "glob(*)"],
)
def test_an_override_that_hydra_does_not_take_is_named_with_its_cure(name: str) -> None:
    written = f"trainer.experiment_name={name}"
    with pytest.raises(UserError) as caught:
        load_config("published", [*PATHS, written])
    message = str(caught.value)
    assert message.startswith(f"override {written!r}: ")
    assert "published.yaml" not in message
    (again,) = shlex.split(message.partition("in quotes, for a shell: ")[2])
    assert load_config("published", [*PATHS, again]).trainer.experiment_name == name


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.experiment_name=${oc.env:R1RANKER_TEST_NAME}", "trainer.experiment_name: found '???'"),
        ("data.train_files=['${oc.env:R1RANKER_TEST_NAME}',a]", "data.train_files: found '???'"),
        ("data.train_files=[a,???]", "data.train_files: found '???'"),
        ("data.task_weights={a: '${oc.env:R1RANKER_TEST_NAME}'}", "data.task_weights.a: found '???'"),
        ("data.train_batch_size=many", "data.train_batch_size: found 'many'; an integer is wanted"),
        ("trainer.experiment_name=[a]", "trainer.experiment_name: found ['a']; text is wanted"),
        ("trainer.experiment_name='${nope}'", "trainer.experiment_name: Interpolation key 'nope' not found"),
        (
            "trainer={experimnt_name: x}",
            "unknown key 'trainer.experimnt_name' (did you mean 'trainer.experiment_name'?)",
        ),
        ("trainer.experiment_name=???", "trainer.experiment_name: found '???'"),
        ("trainer.experiment_name='\udcfc'", "trainer.experiment_name: found '\\udcfc'; a name in UTF-8 is wanted"),
    ],
)
def test_a_value_that_cannot_be_used_is_of_the_override_that_sets_it(
    override: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1RANKER_TEST_NAME", "???")
    with pytest.raises(UserError) as caught:
        load_config("published", [*PATHS, override])
    assert str(caught.value).startswith(f"override {override!r}: {said}")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("trainer.experiment_name", "???", "found '???', which stands for what is missing; another name is wanted"),
        ("data.train_files", "???", "found '???', which stands for what is missing; another name is wanted"),
        ("data.val_files", ["a", "???"], "found '???', which stands for what is missing; another name is wanted"),
        ("trainer.experiment_name", "\udcfc", "found '\\udcfc'; a name in UTF-8 is wanted"),
        ("trainer.nnodes", "many", "found 'many'; an integer is wanted"),
    ],
)
def test_a_value_of_a_program_that_cannot_be_used_is_of_no_file(key: str, value: Any, said: str) -> None:
    paths = [one for one in PATHS if not one.startswith(key)]
    with pytest.raises(UserError) as caught:
        load_config("published", paths, values={key: value})
    assert str(caught.value) == f"{key}: {said}"


@pytest.mark.parametrize("name", ["a\nb", "it's\n数据\\", "a\u2028b\x85", "\r\n(a)"])
def test_an_override_with_a_line_break_is_answered_on_one_line(name: str) -> None:
    written = f"trainer.experiment_name=x{name}y"
    with pytest.raises(UserError) as caught:
        load_config("published", [*PATHS, written])
    message = str(caught.value)
    assert message.startswith(f"override {written!r}: ")
    assert len(message.splitlines()) == 1
    word = message.partition("in quotes, for a shell: ")[2]
    shell = ["bash", "-c", f"printf %s {word}"]
    again = subprocess.run(shell, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}).stdout.decode()
    assert load_config("published", [*PATHS, again]).trainer.experiment_name == f"x{name}y"


@pytest.mark.parametrize("written", [" {}={}", "{} ={}", "{}= {} ", " ++{}={}", "\n\t{}={}"])
def test_blanks_around_an_override_and_its_key_change_nothing(written: str) -> None:
    assert load_config("published", [*PATHS, written.format("trainer.seed", 7)]).trainer.seed == 7
    with pytest.raises(UserError, match=r"unknown key 'trainer\.sed' \(did you mean 'trainer\.seed'\?\)"):
        load_config("published", [*PATHS, written.format("trainer.sed", 7)])


@pytest.mark.parametrize(
    ("written", "read"), [("1e3", 1000.0), ("true", True), ("007", 7), ("1_000", 1000), (".5", 0.5)]
)
def test_a_number_in_a_file_is_not_made_a_text(written: str, read: object, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"trainer: {{experiment_name: {written}}}\nalgorithm: {{adv_estimator: gae}}\n")
    with pytest.raises(UserError, match=rf"own\.yaml: trainer\.experiment_name: found {read!r}; text is wanted"):
        load_config("own", PATHS, str(tmp_path))
    (tmp_path / "own.yaml").write_text(
        f"trainer: {{experiment_name: '{written}'}}\nalgorithm: {{adv_estimator: gae}}\n"
    )
    assert load_config("own", PATHS, str(tmp_path)).trainer.experiment_name == written


def test_a_directory_of_configs_has_any_name(tmp_path: Path) -> None:
    for name in NAMES:
        here = tmp_path / name.strip("/")
        here.mkdir(parents=True, exist_ok=True)
        (here / "own.yaml").write_text("trainer: {seed: 7}\nalgorithm: {adv_estimator: gae}\n")
        assert load_config("own", PATHS, str(here)).trainer.seed == 7


@pytest.mark.parametrize(
    ("override", "key", "found"),
    [
        ("data.source=/d/[a] b", "source", "/d/[a] b"),
        ("data.source=/d/a #1", "source", "/d/a #1"),
        ("data.source=/home/Jürgen/dt=1", "source", "/home/Jürgen/dt=1"),
        ("data.source=1e3", "source", "1e3"),
        ("data.source='1e3'", "source", "1e3"),
        ("data.source={a", "source", "{a"),
        ("data.limit=3", "limit", 3),
        ("data.limit=null", "limit", None),
        ("data.tasks=[Rec-Movie]", "tasks", ["Rec-Movie"]),
    ],
)
def test_a_text_of_an_experiment_is_taken_as_it_stands(override: str, key: str, found: object) -> None:
    assert getattr(load_experiment("rec_movie", ["data.source=x", override]).data, key) == found


@pytest.mark.parametrize("override", ["data.limit=[", "steps=x", "stepps=3", "data.limit", "a.b=1"])
def test_a_mistake_in_an_experiments_override_names_it(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment("rec_movie", ["data.source=x", override])
    assert str(caught.value).startswith(f"override {override!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["key", "section", "file"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "1e3"),
        ("data.options.tokenizer", "1e3"),
        ("data.options.pool_sizes", "0x10"),
        ("model.path", "1_000"),
        ("arms.to_routing.model.path", "1e3"),
        ("arms.to_routing.answer_style", "2024-01-02"),
    ],
)
def test_a_text_that_looks_like_something_else_is_kept_wherever_it_stands(
    how: str, key: str, value: str, tmp_path: Path
) -> None:
    first, *rest = key.split(".")
    inner = value
    for name in reversed(rest):
        inner = f"{{{name}: {inner}}}"
    given = [f"{key}={value}"] if how == "key" else [f"{first}={inner}"] if how == "section" else []
    if how == "file":
        first_arm = "" if first == "arms" else "arms: {one: {}}\n"
        (tmp_path / "own.yaml").write_text(f"title: own\n{first_arm}{first}: {inner}\n")
    found: Any = load_experiment(str(tmp_path / "own.yaml") if how == "file" else "zero_shot", given)
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.options.recbole=2024", "data.options.recbole: found 2024; a list (a text each) is wanted"),
        ("data.options.recbole=Rec-Movie", "data.options.recbole: found 'Rec-Movie'; a list (a text each) is wanted"),
        ("data.options.seed=x", "data.options.seed: found 'x'; an integer is wanted"),
        ("data.options.users=true", "data.options.users: found True; an integer is wanted"),
        ("data.options={test_share: much}", "data.options.test_share: found 'much'; a number is wanted"),
        ("data.options.merits=1", "data.options.merits: found 1; true or false is wanted"),
        ("data.options.answer_style=index", "data.options: no 'answer_style'"),
        ("arms.to_routing.model.hidden_size=wide", "arms.to_routing.model: Value 'wide'"),
        ("arms.to_routing.model={layers: null}", "arms.to_routing.model: "),
        ("arms.to_routing.model.hiden_size=3", "arms.to_routing.model: Key 'hiden_size' not in 'ModelSpec'"),
    ],
)
def test_values_of_another_type_in_free_sections_are_named_on_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment("zero_shot", [override])
    assert str(caught.value).startswith(f"zero_shot.yaml: {message}")
    assert "\n" not in str(caught.value)


def test_an_arms_override_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    experiment = load_experiment("direct_iterative")
    arm = next(iter(experiment.arms.values()))
    for wrong in ("trainer.experiment_name=数据", "trainer.nope=1", "actor_rollout_ref.rollout.n=1"):
        arm.overrides = [wrong]
        with pytest.raises(UserError, match=r"trainer|rollout\.n"):
            run_experiment(experiment, tmp_path / "out")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=1e3", "1e3: no such model directory"),
        ("arms.to_routing.model={path: ./gone}", "./gone: no such model directory"),
        ("model.path=FILE", "found a file; a model directory is wanted"),
        ("router_data=gone.csv", "router_data: toy/gone.csv: no such file"),
    ],
)
def test_models_and_tables_of_an_experiment_are_looked_for_before_anything_is_made(
    override: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    experiment = load_experiment("zero_shot", [override.replace("FILE", str(tmp_path / "file"))])
    with pytest.raises(UserError, match=re.escape(message)):
        run_experiment(experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x\udcff", "x\ny", "x\0"])
def test_an_output_that_data_cannot_be_under_is_refused_before_anything_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (lambda: run_experiment(load_experiment("zero_shot"), Path(name)), lambda: quickstart(output=name)):
        with pytest.raises(UserError, match=r"^--output: found .* a printable name in UTF-8 is wanted$"):
            call()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_arms_are_trained_under_any_path(tmp_path: Path) -> None:
    experiment = load_experiment("direct_iterative")
    label = next(iter(experiment.arms))
    for name in NAMES:
        config = training_config(experiment, label, 1, f"{name}/base", Path(name), Path(name) / label)
        assert config.data.train_files == f"{Path(name)}/{experiment.arms[label].mode}_ranking/train.parquet"
        assert (config.actor_rollout_ref.model.path, config.output_dir) == (f"{name}/base", f"{Path(name)}/{label}")

"""The training configuration, typed, in veRL's vocabulary. Values stand in configs/*.yaml; checks in checks.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from r1ranker.trainer.config.models import CriticModelConfig, FSDPConfig, ModelConfig, OptimConfig

BY_GROUP = ("grpo", "rloo", "maxrl")
"""estimators that compare whole responses to one prompt"""
ESTIMATORS = ("gae", *BY_GROUP, "reinforce_plus_plus")
LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
LOSS_MODES = ("vanilla", "gspo", "cispo", "dr_grpo")
"""of the policy"""
KL_TYPES = ("k1", "k2", "k3")
CORRECTION_LEVELS = ("token", "sequence")
"""of importance weights against the engine's log-probabilities"""


@dataclass
class KLControlConfig:
    type: str = "fixed"
    """fixed | adaptive: of the KL in the reward"""
    kl_coef: float = 0.001
    target_kl: float = 0.1
    """nats a token, for adaptive"""
    horizon: int = 10000
    """samples over which the adaptive coefficient moves"""


@dataclass
class RolloutCorrectionConfig:
    rollout_is: str | None = None
    """token | sequence: importance weights against the engine's log-probabilities; null: none"""
    rollout_is_threshold: str = "2.0"
    """where they are truncated; two bounds, as 0.5_5.0: outside them they are 0"""
    rollout_rs: str | None = None
    """of token_k1, seq_sum_k1, seq_mean_k1, the same with k2 and k3, seq_max_k2, seq_max_k3, by commas: tokens or whole responses that
    are too far from the engine's policy are not learned from; null: all are"""
    rollout_rs_threshold: str | None = None
    """how far: of k1 a ratio, or two as 0.5_2.0; of k2 and k3 nats. One for all, or one for each, by commas"""


@dataclass
class FilterGroupsConfig:
    enable: bool = False
    """groups in which no reward differs are replaced by others, of further prompts"""
    metric: str = "score"
    """what has to differ: score, or a part of the reward"""
    max_num_gen_batches: int = 10
    """batches that are drawn for a step at most; with fewer groups than wanted the step goes on"""


@dataclass
class AlgorithmConfig:
    adv_estimator: str = "grpo"
    """gae | grpo | rloo | maxrl | reinforce_plus_plus"""
    gamma: float = 1.0
    lam: float = 1.0
    turn_gamma: float = 0.0
    """discount from one turn of a conversation to the next; 0: a turn's reward is that of its own elimination. Likewise of ranks"""
    credit: str = "response"
    """response | rank: a direct ranking is rewarded as a whole, or each of its lines by what it adds to NDCG"""
    norm_adv_by_std_in_grpo: bool = True
    use_kl_in_reward: bool = False
    kl_penalty: str = "k1"
    """k1 | k2 | k3: estimator of the KL in the reward"""
    kl_ctrl: KLControlConfig = field(default_factory=KLControlConfig)
    rollout_correction: RolloutCorrectionConfig = field(default_factory=RolloutCorrectionConfig)
    filter_groups: FilterGroupsConfig = field(default_factory=FilterGroupsConfig)


@dataclass
class DataConfig:
    train_files: Any = None
    """training parquet: a path or a list of paths"""
    val_files: Any = None
    """validation parquet: a path, a list of paths, or null"""
    train_batch_size: int = 64
    """prompts a step"""
    val_max_samples: int = 256
    """rows validated at most, spread evenly over the tasks; -1: all"""
    val_batch_size: int | None = None
    """rows validated at once; null: all"""
    max_prompt_length: int = 1400
    """tokens"""
    max_response_length: int = 1024
    """tokens"""
    filter_overlong_prompts: bool = True
    """leave rows over max_prompt_length out and count them; false: refuse the file"""
    shuffle: bool = True
    seed: int = 1
    answer_style: str | None = None
    """name | label, as [3] | letter, as [C] | label_after, letter_after (behind the candidate); null: as the rows were prepared"""
    think: bool | None = None
    """reason before answering; null: as the rows were prepared"""
    rounds: str = "separate"
    """separate | conversation: an elimination asks anew with the pool that is left, or goes on with another turn"""
    keep_thoughts: bool = True
    """in a conversation: earlier turns stay with their thoughts; false: without"""
    task_weights: dict[str, float] = field(default_factory=dict)
    """task -> how often an epoch deals each of its rows; 1 where none is given"""
    curriculum: str | None = None
    """pool_size: the first epoch goes from small pools to large ones"""
    cache_dir: str | None = None
    """where tokenised rows are kept; null: $R1RANKER_CACHE or ~/.cache/r1ranker"""


@dataclass
class PolicyLossConfig:
    loss_mode: str = "vanilla"
    """vanilla | gspo | cispo | dr_grpo: vanilla, and loss_agg_mode seq-mean-token-sum-norm"""


@dataclass
class ActorConfig:
    ppo_mini_batch_size: int = 32
    """prompts an update; more than the batch: the whole batch"""
    ppo_micro_batch_size: int | None = None
    """responses a forward pass over all processes, where use_dynamic_bsz is off"""
    ppo_micro_batch_size_per_gpu: int | None = None
    """the same a process"""
    use_dynamic_bsz: bool = True
    """bound micro-batches by tokens rather than by responses"""
    ppo_max_token_len_per_gpu: int = 16384
    """tokens a micro-batch"""
    ppo_epochs: int = 1
    shuffle: bool = True
    """deal the batch anew to mini-batches in each epoch"""
    clip_ratio: float = 0.2
    clip_ratio_low: float | None = None
    """null: clip_ratio"""
    clip_ratio_high: float | None = None
    """null: clip_ratio"""
    clip_ratio_c: float = 3.0
    """dual clip: bound of the loss where the advantage is negative"""
    loss_agg_mode: str = "token-mean"
    """token-mean | seq-mean-token-sum | seq-mean-token-mean | seq-mean-token-sum-norm: divided by data.max_response_length"""
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    entropy_coeff: float = 0.0
    use_kl_loss: bool = False
    kl_loss_coef: float = 0.001
    kl_loss_type: str = "k3"
    """k1 | k2 | k3; low_var_kl is veRL's name for k3"""
    grad_clip: float = 1.0
    recompute_old_log_probs: str = "auto"
    """auto | true | false. auto: the engine's are taken in float32, where they agree; recomputed in bfloat16"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class RefConfig:
    log_prob_micro_batch_size: int | None = None
    log_prob_micro_batch_size_per_gpu: int | None = None
    log_prob_max_token_len_per_gpu: int | None = None
    """tokens a micro-batch; null: the actor's"""
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class ValKwargs:
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1


@dataclass
class RolloutConfig:
    name: str = "hf"
    """hf: transformers; vllm: vLLM"""
    placement: str = "colocated"
    """colocated: in the trainer's processes; separate: in n_workers processes of their own"""
    n_workers: int = 1
    """processes (GPUs) of the rollout where its placement is separate"""
    n: int = 1
    """samples a prompt"""
    temperature: float = 1.0
    top_p: float = 1.0
    """training samples from the whole distribution: only 1 is taken"""
    top_k: int = -1
    """likewise: only -1 is taken"""
    constrain: str = "none"
    """none | candidates: inside the answer block only names or labels of the pool are sampled"""
    every_answer: bool = False
    """constrained and answered at once: a group is every answer with its probability, not n samples; of a direct ranking of more
    than four candidates, every first choice"""
    eliminate_to: int | None = None
    """iterative: the policy first takes candidates out of larger pools, until so many are left, which is not learned from; null: rows
    as they are"""
    max_turns: int | None = None
    """of a conversation; null: until one candidate is left"""
    max_num_seqs: int = 256
    """responses generated at once by an engine"""
    enforce_eager: bool = False
    """vllm: no CUDA graphs"""
    tensor_model_parallel_size: int = 1
    """vllm: processes that an engine spans"""
    free_cache_engine: bool = True
    """colocated engines give their weights back while the trainer works: hf, and vllm on GPUs with its cache"""
    gpu_memory_utilization: float = 0.4
    """share of a GPU that an engine with a cache of its own may take; the hf engine takes what a batch needs"""
    log_prob_micro_batch_size: int | None = None
    log_prob_micro_batch_size_per_gpu: int | None = None
    log_prob_max_token_len_per_gpu: int | None = None
    """old log-probabilities' micro-batches; null: the actor's"""
    val_kwargs: ValKwargs = field(default_factory=ValKwargs)


@dataclass
class ActorRolloutRefConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    ref: RefConfig = field(default_factory=RefConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)


@dataclass
class CriticConfig:
    model: CriticModelConfig = field(default_factory=CriticModelConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-6))
    ppo_mini_batch_size: int | None = None
    """null: the actor's"""
    ppo_micro_batch_size: int | None = None
    ppo_micro_batch_size_per_gpu: int | None = None
    use_dynamic_bsz: bool | None = None
    """null: the actor's"""
    ppo_max_token_len_per_gpu: int | None = None
    """null: the actor's"""
    ppo_epochs: int | None = None
    """null: the actor's"""
    cliprange_value: float = 0.5
    loss_agg_mode: str = "token-mean"
    grad_clip: float = 1.0


@dataclass
class RewardFunctionConfig:
    path: str | None = None
    """a Python file of one's own, or null for the built-in rewards"""
    name: str = "compute_score"


@dataclass
class OverlongBufferConfig:
    enable: bool = False
    """take something off the score of responses that come near data.max_response_length"""
    len: int = 0
    """tokens before that length, over which the penalty grows from nothing to all"""
    penalty_factor: float = 1.0
    """the penalty at that length"""


@dataclass
class RewardConfig:
    num_workers: int = 0
    """processes that compute rewards while generation goes on; 0: the driver does"""
    timeout: float | None = None
    """seconds that a call may take, where num_workers is over 0; null: as long as it takes"""
    max_failure_rate: float = 0.05
    """share of a batch's rewards that may fail and be left out; over it the run ends. 0: at the first"""
    overlong_buffer: OverlongBufferConfig = field(default_factory=OverlongBufferConfig)


@dataclass
class TrainerConfig:
    executor: str = "ray"
    """ray | local: workers as Ray actors, or one in this process"""
    n_gpus_per_node: int = 1
    """processes a node; without a GPU they run on the CPU"""
    nnodes: int = 1
    seed: int = 1
    total_epochs: int = 1
    total_training_steps: int | None = None
    """null: as total_epochs gives; else the smaller of the two ends the run"""
    async_steps: int = 0
    """1: the next batch is sampled with the weights before an update while the update is made; 0: after it"""
    on_bad_step: str = "skip"
    """skip | stop: what follows a step with numbers that are not finite, of which no update is made"""
    critic_warmup: int = 0
    """steps in which only the critic learns"""
    val_before_train: bool = True
    test_freq: int = 100
    """steps between validations; -1: none"""
    save_freq: int = 100
    """steps between saves of the training state and the actor; -1: only at the end"""
    resume_mode: str = "auto"
    """auto: go on from the newest whole state of the run's directory; disable: begin anew; or the directory of a state"""
    max_actor_ckpt_to_keep: int | None = 2
    """states that stay, the newest ones; null: all"""
    best_metric: str | None = None
    """a metric of validation, such as val-core/Rec-Movie/reward/mean: the actor with the highest is kept under best/"""
    max_restarts: int = 3
    """how often a run whose Ray processes die or hang starts them again and goes on from its last state"""
    timeout: float = 3600.0
    """seconds that a call to a process, or a collective of them, may take"""
    project_name: str = "Ranking-FM"
    experiment_name: str = "ranking"
    default_local_dir: str | None = None
    """null: checkpoints/<project_name>/<experiment_name>"""
    rollout_data_dir: str | None = None
    """rollouts to read, a file a step; null: rollouts/ in the run's directory"""
    rollout_data_prompts: int = 2
    """prompts of a step whose responses are written there; 0: none, -1: all"""
    log_val_generations: int = 4
    """rows of each validation, the same each time, whose responses are written below it; 0: none"""
    profile_steps: list[int] = field(default_factory=list)
    """steps that torch's profiler is on in: a trace a process of the trainer in profile/ of the run's directory, and a summary on the console"""
    default_hdfs_dir: str | None = None
    """checkpoints go to a local directory: only null is taken"""
    logger: list[str] = field(default_factory=lambda: ["console"])
    """of console, jsonl, wandb, tensorboard; the first two are always on"""


@dataclass
class Config:
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    data: DataConfig = field(default_factory=DataConfig)
    actor_rollout_ref: ActorRolloutRefConfig = field(default_factory=ActorRolloutRefConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    custom_reward_function: RewardFunctionConfig = field(default_factory=RewardFunctionConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def needs_critic(self) -> bool:
        return self.algorithm.adv_estimator == "gae"

    @property
    def needs_reference(self) -> bool:
        return self.actor_rollout_ref.actor.use_kl_loss or self.algorithm.use_kl_in_reward

    @property
    def corrects(self) -> bool:
        """Whether the trainer's log-probabilities of a batch are held against the engine's."""
        correction = self.algorithm.rollout_correction
        return correction.rollout_is is not None or correction.rollout_rs is not None

    @property
    def on_policy(self) -> bool:
        """Whether a batch is used for one update only."""
        actor = self.actor_rollout_ref.actor
        return actor.ppo_epochs == 1 and actor.ppo_mini_batch_size == self.data.train_batch_size

    @property
    def world_size(self) -> int:
        """Processes over all nodes."""
        return self.trainer.nnodes * self.trainer.n_gpus_per_node

    @property
    def output_dir(self) -> str:
        """Where the run's checkpoints and logs go."""
        trainer = self.trainer
        return trainer.default_local_dir or f"checkpoints/{trainer.project_name}/{trainer.experiment_name}"

"""The settings of the authors' later training scripts, train_iranker.sh and train_dranker.sh, in their order."""

from __future__ import annotations

BATCHES = {
    "IRanker": {"prompts": 8, "micro": 8, "memory": 0.4, "steps": 1501, "epochs": 3},
    "DRanker": {"prompts": 2, "micro": 4, "memory": 0.3, "steps": 1000, "epochs": 1},
}
MODES = {"IRanker": "iterative", "DRanker": "direct"}


def overrides_of(script: str, data: str, model: str, gpus: int = 4, name: str = "run") -> list[str]:
    """The overrides of `script` (IRanker or DRanker), as a shell hands them over, its variables filled in."""
    sizes = BATCHES[script]
    micro = sizes["micro"]
    return [
        "algorithm.adv_estimator=gae",
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/test.parquet",
        f"data.train_batch_size={sizes['prompts']}",
        f"data.val_batch_size={sizes['prompts']}",
        "data.max_prompt_length=1400",
        "data.max_response_length=1024",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.use_remove_padding=True",
        "actor_rollout_ref.actor.use_dynamic_bsz=True",
        "actor_rollout_ref.actor.optim.lr=1e-6",
        "actor_rollout_ref.actor.ppo_mini_batch_size=32",
        f"actor_rollout_ref.actor.ppo_micro_batch_size={micro}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size={micro}",
        "actor_rollout_ref.model.use_remove_padding=True",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        f"actor_rollout_ref.rollout.gpu_memory_utilization={sizes['memory']}",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size={micro}",
        "actor_rollout_ref.actor.fsdp_config.param_offload=True",
        "actor_rollout_ref.actor.fsdp_config.grad_offload=True",
        "actor_rollout_ref.model.enable_gradient_checkpointing=True",
        "actor_rollout_ref.ref.fsdp_config.param_offload=True",
        "actor_rollout_ref.rollout.temperature=1",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "critic.optim.lr=2e-6",
        f"critic.model.path={model}",
        "critic.ppo_mini_batch_size=32",
        f"critic.ppo_micro_batch_size={micro}",
        "critic.model.fsdp_config.param_offload=True",
        "critic.model.fsdp_config.grad_offload=True",
        "critic.model.fsdp_config.optimizer_offload=True",
        "algorithm.kl_ctrl.kl_coef=0.001",
        "trainer.logger=[wandb]",
        "+trainer.val_before_train=False",
        "trainer.default_hdfs_dir=null",
        f"trainer.n_gpus_per_node={gpus}",
        "trainer.val_before_train=True",
        "trainer.nnodes=1",
        "trainer.save_freq=100",
        "trainer.test_freq=100",
        "trainer.project_name=Ranking-FM",
        f"trainer.experiment_name={script}-{name}",
        f"trainer.total_training_steps={sizes['steps']}",
        f"trainer.total_epochs={sizes['epochs']}",
    ]

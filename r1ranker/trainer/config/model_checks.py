"""Values of a Config about its models and how they learn, each refused with a sentence where it cannot work."""

from __future__ import annotations

from r1ranker.choices import DTYPES
from r1ranker.errors import UserError, note
from r1ranker.trainer.config.choice import one_of
from r1ranker.trainer.config.models import ModelConfig, OptimConfig, offloads
from r1ranker.trainer.config.schema import Config

OPTIMIZERS = ("adamw", "adamw_8bit", "muon")
_NOT_BESIDE = {
    "muon": ("which takes whole matrices", "whose products of matrices are too slow in host memory"),
    "adamw_8bit": (
        "which saves nothing with narrow matrices",
        "which is for moments that stay where they are computed",
    ),
}
"""why an optimizer goes neither with adapters nor with offload"""
LEAST_LORA_LR = 1e-5
"""below it a learning rate is one of whole weights: adapters take about ten times as much (Schulman et al. 2025, "LoRA Without Regret")"""


def check_models(config: Config) -> None:
    """Raise UserError where a model or its optimizer is not one that there is; a learning rate too small for adapters is said."""
    role, critic = config.actor_rollout_ref, config.critic
    one_of("actor_rollout_ref.model.dtype", role.model.dtype, DTYPES)
    one_of("critic.model.dtype", critic.model.dtype, ("auto",))  # the actor's is in force
    _check_optim("actor_rollout_ref.actor.optim", role.actor.optim)
    _check_optim("critic.optim", critic.optim)
    _check_model("actor_rollout_ref.model", role.model)
    _check_model("critic.model", critic.model)
    learners = [("actor_rollout_ref.actor.optim", role.model, role.actor.optim, role.actor.fsdp_config)]
    if config.needs_critic:
        learners.append(("critic.optim", critic.model, critic.optim, critic.model.fsdp_config))
    for where, model, optim, fsdp in learners:
        why = _NOT_BESIDE.get(optim.name)
        if why is not None and model.lora_rank:
            raise UserError(f"{where}.name: found {optim.name}, {why[0]}; adapters (lora_rank) want adamw")
        if why is not None and offloads(fsdp):
            raise UserError(f"{where}.name: found {optim.name}, {why[1]}; no offload, or adamw, is wanted")
        if model.lora_rank and optim.lr < LEAST_LORA_LR:
            note(
                f"{where}.lr={optim.lr:g}: a rate for whole weights; adapters (lora_rank={model.lora_rank}) learn with about ten times "
                f"as much, from {LEAST_LORA_LR:g} on"
            )


def _check_model(where: str, model: ModelConfig) -> None:
    if not model.use_remove_padding:
        raise UserError(f"{where}.use_remove_padding: found false; batches are always packed, so true is wanted")
    if model.lora_rank < 0:
        raise UserError(f"{where}.lora_rank: found {model.lora_rank}; at least 1, or 0 for no adapters, is wanted")
    if not 0 < model.lora_alpha < float("inf"):
        raise UserError(f"{where}.lora_alpha: found {model.lora_alpha}; a number over 0 is wanted")
    names = model.target_modules
    is_list = isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)
    if names != "all-linear" and not is_list:
        raise UserError(
            f"{where}.target_modules: found {model.target_modules!r}; all-linear, or a list of names such as q_proj, is wanted"
        )


def _check_optim(where: str, optim: OptimConfig) -> None:
    one_of(f"{where}.name", optim.name, OPTIMIZERS)
    one_of(f"{where}.lr_scheduler_type", optim.lr_scheduler_type, ("constant", "cosine"))
    if not 0 < optim.lr < float("inf"):
        raise UserError(f"{where}.lr: found {optim.lr}; a number over 0 is wanted")
    if not optim.weight_decay >= 0:
        raise UserError(f"{where}.weight_decay: found {optim.weight_decay}; a number of at least 0 is wanted")
    if not 0 <= optim.min_lr_ratio <= 1:
        raise UserError(f"{where}.min_lr_ratio: found {optim.min_lr_ratio}; a share from 0 to 1 is wanted")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        raise UserError(f"{where}.betas: found {list(optim.betas)}; two numbers from 0 to under 1 are wanted")
    if not 0 <= optim.lr_warmup_steps_ratio <= 1:
        raise UserError(
            f"{where}.lr_warmup_steps_ratio: found {optim.lr_warmup_steps_ratio}; a share from 0 to 1 is wanted"
        )

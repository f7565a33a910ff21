"""The models of a run and how they learn: their part of the training configuration, in veRL's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1ranker.model.lora import LoraOptions


@dataclass
class ModelConfig:
    path: str | None = None
    """Hugging Face directory or hub id"""
    dtype: str = "auto"
    """auto | float32 | bfloat16: of what is computed, engines included, and of the actor that a run writes; learning weights rest in float32.
    auto: bfloat16 on GPUs, float32 on the CPU. The actor's is in force for reference and critic too"""
    enable_gradient_checkpointing: bool = False
    use_remove_padding: bool = True
    """batches are always packed; false is refused"""
    use_torch_compile: bool = False
    """compile feed-forward layers and norms: no gain on the CPU, see docs/benchmarks.md"""
    share_prompts: bool = True
    """compute a prompt once for all its responses in a micro-batch; the actor's is in force for reference and critic too"""
    lora_rank: int = 0
    """of adapters that learn in place of the weights; 0: the weights learn"""
    lora_alpha: float = 16.0
    """adapters count lora_alpha / lora_rank times"""
    target_modules: Any = "all-linear"
    """layers with adapters: all-linear (all but the output embedding), or a list of names such as q_proj"""


@dataclass
class OptimConfig:
    name: str = "adamw"
    """adamw | adamw_8bit: moments in a quarter of the memory, by torchao | muon: the blocks' matrices by Muon, all else by AdamW"""
    lr: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    lr_warmup_steps: int = -1
    """-1: lr_warmup_steps_ratio decides"""
    lr_warmup_steps_ratio: float = 0.0
    lr_scheduler_type: str = "constant"
    """constant | cosine, after the warm-up"""
    min_lr_ratio: float = 0.0
    """of lr, where the cosine ends"""


@dataclass
class FSDPConfig:
    param_offload: bool = False
    grad_offload: bool = False
    optimizer_offload: bool = False
    """FSDP2 moves the three together: any one of them turns offload on"""


@dataclass
class CriticModelConfig(ModelConfig):
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


def lora_options(model: ModelConfig, seed: int) -> LoraOptions | None:
    """The adapters that a model's config asks for; None: none."""
    from r1ranker.model.lora import LoraOptions

    targets = model.target_modules if isinstance(model.target_modules, str) else tuple(model.target_modules)
    return LoraOptions(model.lora_rank, model.lora_alpha, targets, seed) if model.lora_rank else None


def offloads(config: FSDPConfig) -> bool:
    """Whether a model rests in host memory."""
    return config.param_offload or config.grad_offload or config.optimizer_offload

"""Names of our settings in Transformers, TRL, PEFT, DeepSpeed, Lightning and hosted services.

Used only in the message about an unknown key; none of these names is accepted.
"""

from __future__ import annotations

# Our key or option: its names elsewhere. A dotted name matches only with its section.
_NAMES = {
    "seed": "seed random_seed",
    "name": "run_name job_name suffix",
    "runs_dir": "output_dir out_dir save_dir logging_dir default_root_dir",
    "model.name_or_path": "model_name_or_path pretrained_model_name_or_path model_name model_id model_path base_model "
    "model.path model.name",
    "model.revision": "model_revision",
    "model.attention": "attn_implementation use_flash_attention use_flash_attention_2 flash_attention flash_attn",
    "data.path": "train_file train_files train_path training_file data_path data_dir dataset dataset_name dataset_path "
    "datasets data.name data.file data.files",
    "data.validation_path": "validation_file eval_file val_file eval_dataset val_path test_file",
    "data.validation_fraction": "val_size test_size val_set_size validation_split validation_split_percentage",
    "data.hub_split": "dataset_split split",
    "data.seed": "data_seed dataset_seed",
    "data.seq_len_tokens": "max_seq_length max_seq_len max_length model_max_length cutoff_len sequence_len seq_length "
    "seq_len context_length block_size",
    "data.packing": "sample_packing pack",
    "data.system_prompt": "system system_message default_system",
    "data.num_workers": "dataloader_num_workers preprocessing_num_workers dataset_num_proc num_proc",
    "method=full": "full_finetune full_finetuning",
    "method=lora": "lora peft use_peft use_lora",
    "method=dora": "use_dora",
    "method=qlora": "load_in_4bit quantization quantization_bit quantization_config use_qlora",
    "method.kind": "finetuning_type peft_type adapter method.type method.name",
    "method.rank": "lora_r lora_rank r",
    "method.alpha": "lora_alpha",
    "method.dropout": "lora_dropout",
    "method.target_modules": "lora_target_modules lora_target target_module",
    "method.rslora": "use_rslora",
    "method.double_quantization": "bnb_4bit_use_double_quant double_quant",
    "optim.epochs": "num_train_epochs n_epochs num_epochs max_epochs train_epochs",
    "optim.max_steps": "max_train_steps total_steps num_steps num_training_steps train_steps max_iters",
    "optim.lr": "learning_rate base_lr peak_lr max_lr",
    "optim.lr_multiplier": "learning_rate_multiplier",
    "optim.schedule": "lr_scheduler_type lr_scheduler scheduler scheduler_type lr_schedule",
    "optim.warmup_steps": "num_warmup_steps warmup_num_steps lr_warmup_steps warmup",
    "optim.min_lr_ratio": "min_lr_rate",
    "optim.beta1": "adam_beta1",
    "optim.beta2": "adam_beta2",
    "optim.eps": "adam_epsilon adam_eps epsilon",
    "optim.grad_clip": "max_grad_norm gradient_clip_val gradient_clipping clip_grad clip_grad_norm",
    "optim.early_stopping_patience": "early_stopping patience",
    "strategy.precision": "bf16 fp16 fp32 mixed_precision torch_dtype dtype",
    "strategy.activation_checkpointing": "gradient_checkpointing activation_checkpoint",
    "strategy.compile": "torch_compile",
    "strategy.offload_optimizer": "offload_optimizer.device offload_optimizer_device",
    "strategy.offload_params": "offload_param offload_param.device offload_param_device cpu_offload",
    "batch.global_sequences": "batch_size train_batch_size global_batch_size effective_batch_size",
    "checkpoint.save_every_steps": "save_steps save_interval checkpoint_every every_n_train_steps",
    "checkpoint.keep_last": "save_total_limit save_top_k max_to_keep",
    "checkpoint.keep_best": "load_best_model_at_end save_best",
    "track.eval_every_steps": "eval_steps eval_interval evaluation_steps val_check_interval",
    "track.wandb": "report_to logger use_wandb wandb_mode wandb.mode",
    "cluster.nodes": "num_nodes nnodes num_machines",
    "cluster.devices_per_node": "n_gpus num_gpus n_gpus_per_node gpus_per_node gpus nproc_per_node ntasks_per_node "
    "devices num_devices",
    "cluster.walltime_min": "walltime time_limit max_time time",
    "cluster.memory_gib_per_node": "mem",
    "cluster.environment": "env env_vars",
}
# Names without a single counterpart here, and the hint for them.
_ANSWERS = {
    "gradient_accumulation_steps grad_accum_steps grad_accum accumulate_grad_batches accumulation_steps": ""
    "Gradient accumulation is derived: give batch.global_sequences (per optimizer step, over all devices) and, if "
    "needed, batch.micro_sequences (per device and micro-batch)",
    "per_device_train_batch_size train_micro_batch_size_per_gpu micro_batch_size per_gpu_train_batch_size": "Give "
    "batch.micro_sequences (per device and micro-batch); batch.global_sequences is per step, over all devices",
    "per_device_eval_batch_size eval_batch_size": "Evaluation uses the micro-batch size of training "
    "(batch.micro_sequences)",
    "zero_stage stage zero zero_optimization deepspeed deepspeed_config fsdp fsdp_config": "Choose strategy=zero1, "
    "strategy=zero2 or strategy=zero3; with host memory: strategy=zero2_offload or strategy=zero3_offload",
    "min_lr min_learning_rate": "Give it as a fraction of the peak: optim.min_lr_ratio",
    "batch.tokens batch_tokens tokens_per_batch": "Give batch.global_tokens (per optimizer step, over all devices) or "
    "batch.micro_tokens (per device and micro-batch)",
    "logging_steps log_every_n_steps logging_strategy": "Every step is logged; leave it out",
    "eval_strategy evaluation_strategy": "Validation runs after each epoch, and every track.eval_every_steps",
    "save_strategy": "Checkpoints are saved after each epoch and at the end, or every checkpoint.save_every_steps",
    "optimizer optimizer_name optim_type": "The optimizer is AdamW; its settings are optim.lr, optim.weight_decay, "
    "optim.beta1, optim.beta2 and optim.eps",
    "load_in_8bit": "Bases are quantized to 4 bits only: method=qlora",
    "world_size num_processes": "World size is cluster.nodes times cluster.devices_per_node",
    "resume resume_from_checkpoint": "`launcher resume RUN` continues from the latest checkpoint",
    "trust_remote_code": "Code from a model is never run; leave it out",
    "hf_token hub_token use_auth_token token api_key wandb_api_key": "Secrets are not settings: set HF_TOKEN or "
    "WANDB_API_KEY in the environment",
}
_HINTS = {name: f"Did you mean {key}?" for key, names in _NAMES.items() for name in names.split()}
_HINTS |= {name: text for names, text in _ANSWERS.items() for name in names.split()}
VAGUE_NAMES = ("enabled", "type")
"""Last parts that say nothing without the part before: bf16.enabled."""


def foreign_names() -> list[str]:
    """Every name with an answer."""
    return list(_HINTS)


def answer(key: str) -> str:
    """Hint for a setting of another program; empty for an unknown name."""
    parts = key.lstrip("-").lower().replace("-", "_").split(".")
    candidates = [".".join(parts[-2:]), parts[-1]]
    if parts[-1] in VAGUE_NAMES and len(parts) > 1:
        candidates.append(parts[-2])
    return next((_HINTS[name] for name in candidates if name in _HINTS), "")

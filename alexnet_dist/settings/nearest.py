"""Which name is meant by one that is unknown: a habit of another program, or a slip of the finger."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from alexnet_dist.base.started import name_command

# What timm, torchvision, ultralytics, Lightning and transformers call it, in small letters with underscores.
HABITS = {
    "train.global_batch_size": (
        *("b", "bs", "batch", "batch_size", "train_batch_size", "per_device_train_batch_size", "total_batch_size"),
    ),
    "batch_size": ("b", "bs", "batch", "per_device_eval_batch_size"),
    "train.micro_batch_size": (
        *("accumulate", "update_freq", "grad_accum_steps", "accumulate_grad_batches", "gradient_accumulation_steps"),
    ),
    "train.epochs": ("e", "ep", "epoch", "num_epochs", "max_epochs", "num_train_epochs", "n_epochs"),
    "train.max_steps": ("steps", "num_steps", "max_iter", "max_iters", "iterations"),
    "train.early_stop": ("patience", "early_stopping", "early_stopping_patience"),
    "optimizer.lr": ("learning_rate", "lr0", "lr_base", "base_lr", "init_lr"),
    "optimizer.weight_decay": ("wd", "decay", "l2"),
    "optimizer.momentum": ("mom",),
    "optimizer.name": ("opt", "optim", "optimiser", "optimizer", "optimizer.type"),
    "optimizer.freeze": ("freeze_layers",),
    "schedule.name": (
        *("schedule", "sched", "scheduler", "lr_scheduler", "lr_scheduler_type", "schedule.type", "cos_lr", "lrf"),
    ),
    "schedule.warmup_steps": ("warmup", "warmup_epochs", "lr_warmup_epochs"),
    "weights": ("model", "run"),
    "model.variant": ("a", "arch", "architecture", "model", "model.name", "model.type"),
    "model.pretrained": ("weights", "finetune", "initial_checkpoint", "pretrained_path", "load"),
    "model.image_size": ("imgsz", "img", "img_size", "image_size", "input_size", "train_crop_size", "crop_size"),
    "model.num_classes": ("nc", "classes"),
    "model.dropout": ("drop", "drop_rate"),
    "model.in_channels": ("in_chans", "channels"),
    "data.root": ("data", "d", "data_dir", "data_path", "dataset", "dataset_path", "root_dir", "path", "dir", "folder"),
    "data.train": ("train_dir", "train_split", "train_data"),
    "data.val": ("val_dir", "valid", "validation", "val_split", "val_data", "data.valid", "data.validation"),
    "data.test": ("test_dir", "test_data"),
    "data.val_fraction": ("valid_pct", "validation_split", "val_ratio", "split"),
    "data.workers": ("j", "nw", "num_workers", "dataloader_num_workers"),
    "augment.resize": ("val_resize_size", "resize_size"),
    "augment.horizontal_flip": ("hflip", "fliplr", "hflip_prob", "flip"),
    "augment.vertical_flip": ("vflip", "flipud"),
    "augment.random_erasing": ("reprob", "random_erase", "erasing"),
    "augment.crop_scale": ("scale",),
    "precision": ("amp", "fp16", "bf16", "half", "mixed_precision", "amp_dtype"),
    "device": ("gpu", "cuda", "cpu", "no_cuda", "accelerator"),
    "compile": ("torchcompile", "torch_compile"),
    "output_dir": (
        *("o", "output", "out", "out_dir", "save_dir", "default_root_dir", "logdir", "log_dir"),
        *("name", "run_name", "experiment", "exp_name"),
    ),
    "out": ("o", "output", "save", "file"),
    "log.every_steps": ("log_interval", "print_freq", "log_every_n_steps", "logging_steps"),
    "checkpoint.every_steps": ("save_period", "save_freq", "save_steps", "save_every", "checkpoint.every"),
    "checkpoint.keep": ("checkpoint_hist", "save_total_limit", "save_top_k"),
    "tracking.wandb": ("tracking", "log_wandb", "use_wandb", "report_to", "logger"),
    "parallel.strategy": ("parallel", "distributed", "ddp"),
    "resume_from": ("resume", "ckpt", "ckpt_path", "checkpoint", "resume_from_checkpoint"),
    "new": ("overwrite", "exist_ok", "restart"),
    "model": ("ckpt", "ckpt_path", "checkpoint", "run"),
    "config": ("c", "cfg", "conf", "recipe"),
    "topk": ("k", "top_k"),
    "profile": ("profiler",),
    "print_config": ("show_config", "dry_run"),
}
# What is no option here, and where it is told instead.
_LAUNCHER = "processes are started by a launcher: see alexnet-dist launch"
ELSEWHERE = {
    **dict.fromkeys(
        ("gpus", "devices", "num_nodes", "nnodes", "num_gpus", "num_processes", "nproc_per_node"), _LAUNCHER
    ),
    **dict.fromkeys(("world_size", "local_rank", "rank", "dist_url", "dist_backend", "multi_gpu"), _LAUNCHER),
    **dict.fromkeys(("evaluate", "eval", "test_only", "validate", "do_eval"), "see alexnet-dist evaluate --help"),
    **dict.fromkeys(("do_predict", "predict"), "see alexnet-dist predict --help"),
    **dict.fromkeys(("val_batch_size", "eval_batch_size"), "validation has no batch size of its own"),
}
# Of two words: twice the letters in common over all their letters. A section that is right tells the half.
NEAR_BESIDE, NEAR_ENOUGH, NEAR_A_HABIT = 0.75, 0.8, 0.85


def explain_elsewhere(word: str) -> str | None:
    """Where something is told that is no option here; None where nothing is known of it."""
    text = ELSEWHERE.get(_plain(word))
    return text and re.sub("alexnet-dist (evaluate|predict)", lambda match: name_command(match[1]), text)


def find_nearest(word: str, known: Collection[str], sections: Collection[str] = ()) -> str | None:
    """The known name that an unknown one most likely means; None where none is near.

    Args:
        word: as it was written: a key, or an option with its dashes.
        known: dotted names.
        sections: what else may be meant, as a whole.
    """
    plain = _plain(word)
    section, _, last = plain.rpartition(".")
    beside = {_last(name): name for name in known if section and name.rpartition(".")[0] == section}
    ends = {} if section else {_last(name): name for name in reversed(list(known))}
    whole = {} if beside else ends | {name: name for name in known}
    habits = {habit: name for name, words in reversed(HABITS.items()) if name in known for habit in words}
    alike = [
        *(name for name in known if name == plain),
        *([] if section else _rank(plain, {name: name for name in sections})),
        *(habits[habit] for habit in (plain, plain.replace(".", "_")) if habit in habits),
        *(name for name in beside.values() if last in HABITS.get(name, ())),
        *([habits[last]] if section and len(last) > 1 and last in habits else []),
        *(name for name in known if _last(name) == last),  # the section was left out, or is another one
        *_rank(last, beside, NEAR_BESIDE),
        *_rank(plain, whole),
        *_rank(last, {habit: name for habit, name in habits.items() if len(habit) > 3}, NEAR_A_HABIT),
    ]
    return next(iter(alike), None)


def _plain(word: str) -> str:
    return re.sub(r"[-\s]", "_", word.lstrip("-")).lower()


def _rank(word: str, names: dict[str, str], near_enough: float = NEAR_ENOUGH) -> list[str]:
    return [names[near] for near in difflib.get_close_matches(word, names, n=1, cutoff=near_enough)]


def _last(name: str) -> str:
    return name.rpartition(".")[2]

"""Fine-tuning's loop: transformers' Trainer with a run's loss, optimizer and order of rows."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import EvalLoopOutput

from laplora.errors import DataError, NonFiniteError, first_line
from laplora.execution.workers import ALONE, Workers
from laplora.models.adapters import save_adapter
from laplora.prompts.rows import Batch
from laplora.readouts.base import ReadOut
from training.config import OptimizerConfig, RunConfig
from training.fine_tuning.new_adapter import RECOMPUTING
from training.fine_tuning.one_device import OneDeviceArguments
from training.fine_tuning.shared_steps import Collate, SharedBatches, in_forward, shared_loader
from training.workspace.targets import target_loss


class LabelTrainer(Trainer):
    """A Trainer whose loss is the cross-entropy over each row's possible labels (``target_loss``).

    Several processes take parts of each batch. The gradient is then that of one process to rounding: a part's loss is a
    sum over its rows, divided by the rows of all parts.

    Attributes:
        readout: how their logits are read; optimizer_settings: of the configuration.
        workers: the processes that share each batch.
    """

    readout: ReadOut
    optimizer_settings: OptimizerConfig
    workers: Workers = ALONE
    #: A step's loss is the mean over all its rows, in however many batches they come.
    loss_is_scaled_for_ga = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return a batch's part of the mean loss of a step's rows, nats; with ``return_outputs`` also none."""
        targets = inputs.pop("labels")
        counted = inputs.pop("counted", len(targets))
        batch = Batch(**inputs)

        def mean_loss(inner: nn.Module) -> torch.Tensor:
            logits = self.readout.scores(inner, batch).logits
            return target_loss(logits, targets, batch.class_mask)

        loss = in_forward(model, mean_loss) if self.workers.count > 1 else mean_loss(model)
        if num_items_in_batch is not None and (share := self.workers.count * counted / int(num_items_in_batch)) != 1:
            loss = loss * share  # gradients are averaged over the processes
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Return what the Trainer does, a batch's mean loss first; NonFiniteError where that is not a number.

        The Trainer leaves such batches out of the mean, so that a step could be chosen for them.
        """
        result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if (loss := result[0]) is not None and not bool(loss.isfinite()):
            raise NonFiniteError("a loss on selection rows is NaN or infinite: lower optimizer.learning_rate")
        return result

    def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """Return AdamW; of LoRA+ (Hayou et al., arXiv 2402.12354) with a larger step for every ``lora_B``."""
        ratio = self.optimizer_settings.loraplus_lr_ratio
        if ratio is None:
            return super().create_optimizer(*arguments, **options)
        if self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            model: Any = self.model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = create_loraplus_optimizer(
                model,
                kind,
                loraplus_lr_ratio=ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **settings,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.optimizer_settings.group_by_length:
            return super()._get_train_sampler(train_dataset)
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        lengths = [len(row.token_ids) for row, *_ in rows]
        return LengthGrouped(lengths, self.optimizer_settings.step_rows, self.args.seed)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return what loads the training rows; of several processes, this one's part of every batch."""
        if self.workers.count == 1:
            return super().get_train_dataloader()
        rows: Any = self.train_dataset
        order = self._get_train_sampler()
        if not isinstance(order, LengthGrouped):
            order = SeedableRandomSampler(rows, data_seed=self.args.seed)  # what one process has of accelerate
        batches = SharedBatches(order, self.optimizer_settings.batch_size, self.workers)
        return shared_loader(rows, batches, cast(Collate, self.data_collator))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return what loads the selection rows; of several processes, this one's part of every batch."""
        if self.workers.count == 1:
            return super().get_eval_dataloader(eval_dataset)
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = SharedBatches(SequentialSampler(rows), self.args.eval_batch_size, self.workers)
        return shared_loader(rows, batches, cast(Collate, self.data_collator))

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the mean loss over all rows, the same in every process; the Trainer's would count rows twice."""
        if self.workers.count == 1:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        model: Any = self.model
        model.eval()
        total, count = torch.zeros((), dtype=torch.float64), 0
        for inputs in dataloader:
            rows = self._get_num_items_in_batch([inputs], self.args.device)
            loss, _, _ = self.prediction_step(model, inputs, prediction_loss_only=True)
            total += (
                rows * loss.double().cpu() / self.workers.count
            )  # as of training: the processes' mean is the batch's
            count += rows
        mean = float(self.workers.summed([total])[0]) / count
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": mean}, count)  # type: ignore[arg-type]

    def _get_num_items_in_batch(self, batch_samples: Sequence[Mapping[str, Any]], device: torch.device) -> int:
        """Return the rows of a step's batches; the Trainer would count tokens, and leave the first one out."""
        counted = sum(batch.get("counted", len(batch["labels"])) for batch in batch_samples)
        return int(self.workers.summed([torch.tensor(counted)])[0])

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.workers.first:  # newer versions of transformers call it in every process
            return
        assert self.model is not None
        assert self.args.output_dir is not None
        save_adapter(self.model, Path(output_dir or self.args.output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        """Write the state of this process's random numbers, whole or not at all; the Trainer would write in place."""
        checkpoint = Path(output_dir)
        checkpoint.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=checkpoint) as partial:
            super()._save_rng_state(partial)
            for file in Path(partial).iterdir():
                file.replace(checkpoint / file.name)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Go on with the random numbers of a checkpoint; DataError: their file is damaged."""
        try:
            super()._load_rng_state(checkpoint)
        except (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise DataError(
                f"{checkpoint}: the state of the random numbers in it (rng_state*.pth) cannot be read "
                f"({first_line(error)[:200]}): remove this folder, and the run goes on at the checkpoint before it"
            ) from error


class LengthGrouped(Sampler[int]):
    """Rows in a random order in which those of a step are of like length, another one in each epoch.

    The order is transformers' (``get_length_grouped_indices``), its draw that of the seed and the epoch, so that a
    stopped run goes on in it.
    """

    def __init__(self, lengths: Sequence[int], step_rows: int, seed: int) -> None:
        """Take the rows' lengths in tokens, and how many of them are a step."""
        self._lengths, self._step_rows, self._seed, self._epoch = list(lengths), step_rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        grouped: Any = get_length_grouped_indices
        return iter(grouped(self._lengths, self._step_rows, generator=generator))


class StopEarly(EarlyStoppingCallback):  # type: ignore[misc]
    """Stops after so many evaluations without a better one, also where a run that was stopped goes on after them."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        """End at once what had ended."""
        super().on_train_begin(args, state, control, **options)  # type: ignore[no-untyped-call]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class EvaluateLast(TrainerCallback):
    """Evaluates at the last step too."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        """Ask for it."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


def callbacks_of(optimizer: OptimizerConfig) -> list[TrainerCallback]:
    """Return what evaluates at the end and stops early, where a configuration evaluates during training."""
    if optimizer.evaluate_every is None:
        return []
    stop = [] if optimizer.patience is None else [StopEarly(optimizer.patience)]
    return [EvaluateLast(), *stop]


def training_arguments(config: RunConfig, device: torch.device, folder: Path) -> TrainingArguments:
    """Return the Trainer's settings for a run."""
    optimizer = config.optimizer
    options: dict[str, Any] = {}
    if optimizer.evaluate_every is not None:
        options = {
            "eval_strategy": "steps",
            "eval_steps": optimizer.evaluate_every,
            "per_device_eval_batch_size": config.laplace.batch_size,
            "prediction_loss_only": True,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "restore_callback_states_from_checkpoint": True,
        }
    if optimizer.gradient_checkpointing:
        # newer versions of transformers call it otherwise, and warn of the older name
        name = "activation_checkpointing"
        name = name if name in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
        options |= {name: True, f"{name}_kwargs": RECOMPUTING}
    return OneDeviceArguments(
        run_device=str(device),
        output_dir=str(folder),
        max_steps=optimizer.step_count,
        per_device_train_batch_size=optimizer.batch_size,
        gradient_accumulation_steps=optimizer.gradient_accumulation,
        learning_rate=optimizer.peak_rate,
        lr_scheduler_type=optimizer.schedule,
        warmup_steps=optimizer.warmup_steps,
        weight_decay=optimizer.weight_decay,
        save_steps=optimizer.evaluate_every or optimizer.checkpoint_every,
        save_total_limit=2,
        logging_steps=max(1, optimizer.step_count // 20),
        seed=config.seed,
        dataloader_pin_memory=device.type != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        report_to="none",
        run_name=config.name,
        **options,
    )

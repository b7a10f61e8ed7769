"""The gradient noise of a transformers training: one callback, and the figures are in the Trainer's own log."""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, logging
from transformers.trainer_callback import PrinterCallback

import noisescape as ns


def rows(length: int) -> list[dict[str, torch.Tensor]]:
    """The description that comes with scikit-learn's digits, in rows of characters."""
    characters = torch.tensor(list(load_digits().DESCR.encode("ascii", "replace")))
    return [{"input_ids": row, "labels": row} for row in characters.unfold(0, length, 8)]


def main(directory: str) -> None:
    torch.manual_seed(0)
    tokens = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=32, n_layer=2, n_head=2, **tokens))
    trainer = Trainer(
        model,
        TrainingArguments(
            directory,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            max_steps=160,
            use_cpu=True,
            report_to="none",  # or "tensorboard", "wandb", …: they receive the figures too
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows(32),
        callbacks=[ns.training.TransformersNoiseMonitor(every=40, measure_every=2)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()

    for entry in trainer.state.log_history:
        if "noise/scale" in entry:
            scale, low, high = (entry[f"noise/scale{end}"] for end in ("", "_low", "_high"))
            adam = entry["noise/preconditioned/scale"]
            print(
                f"step {entry['step']:4d}  noise scale {scale:6.1f} [{low:.1f}, {high:.1f}] sequences, "
                f"in Adam's metric {adam:6.1f}"
            )


if __name__ == "__main__":
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        main(directory)

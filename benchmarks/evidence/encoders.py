"""Rivals that train a sentence encoder, MiniLM: SetFit's recipe by its library, and a plain fine-tuning with a head.

Each ``fit`` takes texts, labels (rows,) int64, the number of classes and a seed, and returns a function that maps texts
to log probabilities (asked, classes), float64, finite.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional as F

from laplora.features.sentence_encoder import SentenceEncoder, load_sentence_encoder
from laplora.models.offline import ensure_encoder
from laplora.models.quiet import silent_transformers

ENCODER = "all-minilm-l6-v2"
#: SetFit trains on so many pairs of like rows for each row, and on as many of unlike ones, as its paper does
#: (Tunstall et al., arXiv 2209.11055). The library's default is every pair, 45,000 of 300 rows.
ITERATIONS = 20
#: Settings of BERT's fine-tuning (Devlin et al., arXiv 1810.04805, A.3), and more epochs for few rows (Mosbach et al.,
#: arXiv 2006.04884).
RATE, EPOCHS, BATCH, WARM_UP, DROPOUT, DECAY, LONGEST_GRADIENT = 5e-5, 10, 16, 0.1, 0.1, 0.01, 1.0

Answering = Callable[[Sequence[str]], torch.Tensor]
Fit = Callable[[Sequence[str], torch.Tensor, int, int], Answering]


def fit_setfit(texts: Sequence[str], labels: torch.Tensor, classes: int, seed: int) -> Answering:
    """Fit SetFit: pairs of rows pull the encoder's embeddings together or apart, then a logistic regression reads them.

    All settings are the library's but the number of pairs: one epoch of batches of 16 pairs, a rate of 2e-5, and ridge
    of scikit-learn's default strength. If a class has no row, a share of ``1 / (rows + 1)`` is spread over all classes.

    Raises:
        ModuleNotFoundError: setfit is not installed: make peers.
    """
    with _silent(), tempfile.TemporaryDirectory() as folder:
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer
        from setfit import SetFitModel, Trainer, TrainingArguments, logging
        from sklearn.linear_model import LogisticRegression

        logging.set_verbosity_error()
        body = SentenceTransformer(str(ensure_encoder(ENCODER)), device="cpu")
        model = SetFitModel(body, LogisticRegression())
        settings = TrainingArguments(
            output_dir=folder,
            num_iterations=ITERATIONS,
            seed=seed,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            show_progress_bar=False,
        )
        rows = Dataset.from_dict({"text": list(texts), "label": labels.tolist()})
        Trainer(model, settings, train_dataset=rows).train()
    seen = torch.as_tensor(model.model_head.classes_)
    share = 1 / (len(labels) + 1) if len(seen) < classes else 0.0

    def answer(asked: Sequence[str]) -> torch.Tensor:
        probs = torch.zeros(len(asked), classes, dtype=torch.float64)
        probs[:, seen] = model.predict_proba(list(asked), show_progress_bar=False).double()
        return ((1 - share) * probs + share / classes).log()

    return answer


def fit_fine_tuned(texts: Sequence[str], labels: torch.Tensor, classes: int, seed: int) -> Answering:
    """Fine-tune the whole encoder with a linear head on the mean of its last states.

    AdamW without decay of biases and norms, the rate rises over the first steps and falls to 0, gradients are clipped.
    """
    encoder = load_sentence_encoder(ENCODER)
    torch.manual_seed(seed)
    model = encoder.model.requires_grad_(True).train()
    head = torch.nn.Linear(model.config.hidden_size, classes)
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.zeros_(head.bias)
    parameters = [*model.parameters(), *head.parameters()]
    decayed, plain = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}], lr=RATE, fused=True
    )
    steps = EPOCHS * -(-len(texts) // BATCH)
    rising = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / (steps - rising + 1))
    )
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(texts)), BATCH):
            logits = head(F.dropout(_states(encoder, [texts[i] for i in batch]), DROPOUT))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[batch]).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
    model.eval()

    @torch.no_grad()
    def answer(asked: Sequence[str]) -> torch.Tensor:
        states = [_states(encoder, asked[i : i + BATCH]) for i in range(0, len(asked), BATCH)]
        logits: torch.Tensor = head(torch.cat(states))
        return torch.log_softmax(logits.double(), 1)

    return answer


ENCODERS: dict[str, Fit] = {"setfit": fit_setfit, "fine_tuned": fit_fine_tuned}


def _states(encoder: SentenceEncoder, texts: Sequence[str]) -> torch.Tensor:
    """Return the mean of the last states over a text's tokens, (texts, width) float32."""
    tokens = encoder.tokenizer(
        list(texts), padding=True, truncation=True, max_length=encoder.max_tokens, return_tensors="pt"
    )
    weights = tokens["attention_mask"][:, :, None].float()
    pooled: torch.Tensor = (encoder.model(**tokens).last_hidden_state * weights).sum(1) / weights.sum(1)
    return pooled


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep SetFit's and transformers' log lines, bars and warnings off the terminal."""
    with silent_transformers(), contextlib.redirect_stdout(io.StringIO()):
        yield

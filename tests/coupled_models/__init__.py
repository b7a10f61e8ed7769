"""Models and losses without a per-sample loss, and some that look like it but have one.

Of most, a batch of the first two samples shows nothing: they are of one class, or the coupling starts later.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from coupled_models.chance import (
    NoiseOfItsOwn,
    convnext,
    convnext_like,
    noisy_labels,
    numpy_noise,
    python_noise,
    random_mixup,
    swin,
    swin_like,
)
from coupled_models.losses import (
    Capacity,
    ExpertChoice,
    Mixture,
    TopMixture,
    batch_hard,
    batch_weighted,
    decorrelated,
    divided_by_size,
    hardest,
    info_nce,
    ranking,
    self_weighted,
    with_balance,
    without_balance,
)
from coupled_models.normalisations import (
    QuantisedBackbone,
    batch_norm,
    functional_batch_norm,
    instance_norm_over_samples,
    quantised,
    sync_batch_norm,
)
from coupled_models.others import (
    OneGraph,
    Queue,
    causal_attention_over_samples,
    first_of_queue,
    frequent,
    last_sees_all,
    masked_scatter,
    of_those_long_before,
    only_in_the_gradient,
    weighted_nodes,
)
from coupled_models.sound import (
    Encoder,
    Recurrent,
    deep,
    dropout_in_eval,
    fitted,
    group_norm,
    large_logits,
    same_noise_for_all,
    wide,
)
from coupled_models.subjects import F32, Entry, Mean, after, inside, loss_of, of, of_pictures

COUPLED: dict[str, Entry] = {
    # ------------------------------------------------------------------ chance
    "drop path, convnext-like": Entry(of_pictures(convnext_like), random=True),
    "drop path, swin-like": Entry(of_pictures(swin_like), random=True),
    "drop path, ConvNext": Entry(of_pictures(convnext), random=True),
    "drop path, Swin": Entry(of_pictures(swin), random=True),
    "functional dropout at 1 %": Entry(inside(lambda hidden: F.dropout(hidden, 0.01)), random=True),
    "gaussian noise": Entry(inside(lambda hidden: hidden + 1e-3 * torch.randn_like(hidden)), random=True),
    "noise from numpy": Entry(inside(numpy_noise), random=True),
    "noise from random": Entry(inside(python_noise), random=True),
    "noise from a torch generator": Entry(of(lambda: NoiseOfItsOwn(False)), random=True),
    "noise from a numpy generator": Entry(of(lambda: NoiseOfItsOwn(True)), random=True),
    "gumbel softmax": Entry(inside(lambda hidden: F.gumbel_softmax(hidden, tau=0.5)), random=True),
    "random mixup": Entry(inside(random_mixup), random=True),
    "random labels": Entry(loss_of(noisy_labels), random=True),
    # ------------------------------------------------------------------ normalisations over the batch
    "batch norm": Entry(of(batch_norm), runs=False),
    "batch norm of pictures": Entry(
        of_pictures(
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Mean(2, 3), nn.Linear(4, 3))
        )
    ),
    "functional batch norm": Entry(inside(functional_batch_norm), runs=False),
    "sync batch norm": Entry(of(sync_batch_norm), runs=False),
    "instance norm over samples": Entry(inside(instance_norm_over_samples), runs=False),
    "softmax over samples": Entry(inside(lambda hidden: hidden.softmax(0))),
    "unit norm over samples": Entry(inside(lambda hidden: F.normalize(hidden, dim=0))),
    "centred a little": Entry(after(lambda outputs: outputs - 0.001 * outputs.mean(0))),
    "quantised with one scale": Entry(inside(quantised)),
    "dynamically quantised backbone": Entry(of(QuantisedBackbone), dtypes=(F32,)),
    # ------------------------------------------------------------------ losses of the batch
    "class weights of the batch": Entry(loss_of(batch_weighted), hidden=True),
    "triplets, batch-hard": Entry(loss_of(batch_hard)),
    "InfoNCE": Entry(info_nce),
    "ranking": Entry(loss_of(ranking), hidden=True),
    "hard examples only": Entry(loss_of(hardest)),
    "weighted by their own losses": Entry(loss_of(self_weighted)),
    "divided by the batch's size": Entry(loss_of(divided_by_size)),
    "decorrelation": Entry(loss_of(decorrelated)),
    "load balance of experts": Entry(of(Mixture, with_balance)),
    "experts of limited capacity": Entry(of(Capacity), hidden=True),
    "experts that choose": Entry(of(ExpertChoice), hidden=True),
    # ------------------------------------------------------------------ other samples inside the model
    "masked scatter": Entry(inside(masked_scatter)),
    "mixed with its neighbour": Entry(inside(lambda hidden: 0.9 * hidden + 0.1 * hidden.roll(1, 0))),
    "only in the gradient": Entry(inside(only_in_the_gradient)),
    "gradients scaled by frequency": Entry(frequent(True), hidden=True),
    "those long before": Entry(inside(of_those_long_before), hidden=True),
    "the last sample alone": Entry(inside(last_sees_all), hidden=True),
    "causal attention over samples": Entry(inside(causal_attention_over_samples)),
    "queue in a buffer": Entry(of(Queue, first_of_queue)),
    "nodes of one graph": Entry(of(lambda: OneGraph(of_ids=False)), runs=False),
    "nodes of one graph, cut to the batch": Entry(of(lambda: OneGraph(of_ids=False, cut=True)), hidden=True),
}
SOUND: dict[str, Entry] = {
    "gradients not scaled by frequency": Entry(frequent(False)),
    "twelve layers": Entry(of(deep)),
    "fitted to losses of 1e-7": Entry(fitted),
    "convolutions and group norm": Entry(of_pictures(group_norm)),
    "lstm": Entry(of(Recurrent)),
    "transformer in eval": Entry(of(lambda: Encoder().eval())),
    "the same noise for every sample": Entry(inside(same_noise_for_all)),
    "dropout in eval": Entry(of(dropout_in_eval)),
    "batch norm in eval": Entry(of(lambda: batch_norm(training=False))),
    "large logits": Entry(of(large_logits)),
    "wide sums": Entry(wide),
    "drop path in eval, ConvNext": Entry(of_pictures(lambda: convnext().eval())),
    "drop path of rate 0, Swin": Entry(of_pictures(lambda: swin(0.0))),
    "experts without their balance": Entry(of(Mixture, without_balance)),
    "experts chosen by each sample": Entry(of(TopMixture)),
    "chosen nodes of one whole graph": Entry(weighted_nodes),
    "quantised sample by sample": Entry(
        inside(lambda hidden: hidden + ((hidden * 4).round() / 4 - hidden).detach())
    ),
}

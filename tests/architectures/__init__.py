"""Small double-precision models of the kinds people bring, each with data and a reference by plain autograd."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.nn.utils import parametrizations

from architectures.inputs import (
    N,
    attention_data,
    bert_batch,
    bert_padded_by_batch,
    bert_without_types,
    heat_data,
    padded,
    pictures,
    signals,
    t5_data,
    tokens,
    vectors,
)
from architectures.layers import (
    Pools,
    Residual,
    Sequential,
    UNet,
    conv1d_batch_norm,
    conv_with,
    new_weight_norm,
    new_weight_norm_by_formula,
    old_weight_norm,
    old_weight_norm_by_formula,
    rms_norm,
    segmentation,
    spectral_norm,
    unusual_convolutions,
)
from architectures.libraries import (
    Logits,
    bert,
    bert_lora,
    gpt2,
    gpt2_checkpointed,
    gpt2_lora,
    llama,
    mamba,
    mixtral,
    of_logits,
    of_token_logits,
    t5,
    vit,
)
from architectures.parameters import (
    Checkpointed,
    Cubic,
    Spectral,
    TiedEmbeddings,
    frozen_backbone,
    low_rank,
    pruned,
    shared_submodule,
)
from architectures.reference import Architecture
from architectures.structures import (
    Autoencoder,
    Equilibrium,
    Flow,
    GraphNet,
    Heat,
    HeatByTransforms,
    Hypernetwork,
    Listener,
    Products,
    RadialBasis,
    SoftMixture,
    TopMixture,
    Transformer2d,
    ctc,
    elbo,
    mobile,
    negative_likelihood,
    square,
)
from architectures.texts import Attentive, Bag, OwnKernel, PaddedText, Text, TwoTowers
from cases import F64, classes, normal

FLASH, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH
SOFT = functools.partial(F.cross_entropy, label_smoothing=0.1)
# second derivatives through several layers of normalisation and attention round off a little more
DEEP: dict[str, Any] = {"second_tolerance": 1e-6}
# transformers' own RMSNorm and Mamba compute in single precision inside, whatever the model's
PARTLY_SINGLE: dict[str, Any] = {"tolerance": 1e-5, "second_tolerance": 1e-4, "step": 3e-2}
ARCHITECTURES: dict[str, Architecture] = {
    # ------------------------------------------------------------------ of libraries
    "gpt2": Architecture(gpt2, tokens, of_token_logits, gauss_newton=False, **DEEP),
    "gpt2 checkpointed, training": Architecture(
        gpt2_checkpointed, tokens, of_token_logits, gauss_newton=False, **DEEP
    ),
    "gpt2 lora by peft": Architecture(
        gpt2_lora, tokens, of_token_logits, gauss_newton=False, used_before=True, **DEEP
    ),
    "llama": Architecture(lambda: Logits(llama()), tokens, **PARTLY_SINGLE),
    "bert": Architecture(bert, bert_batch, of_logits, gauss_newton=False, **DEEP),
    "bert lora by peft": Architecture(
        bert_lora, bert_batch, of_logits, gauss_newton=False, used_before=True, **DEEP
    ),
    "bert, None among the inputs": Architecture(bert, bert_without_types, of_logits, gauss_newton=False, **DEEP),
    "bert, padded by batch": Architecture(lambda: Logits(bert()), bert_padded_by_batch, **DEEP),
    "t5": Architecture(lambda: Logits(t5()), t5_data, **PARTLY_SINGLE),
    "vit": Architecture(lambda: Logits(vit()), lambda: pictures(side=4), **DEEP),
    "mixtral, eager experts": Architecture(lambda: Logits(mixtral("eager")), tokens, **PARTLY_SINGLE),
    # the grouped product is for single precision alone
    "mixtral, grouped experts": Architecture(
        lambda: Logits(mixtral("grouped_mm")),
        tokens,
        reference=lambda: Logits(mixtral("eager")),
        dtype=torch.float32,
        tolerance=1e-4,
        second_tolerance=1e-3,
        step=3e-2,
    ),
    "mamba": Architecture(lambda: Logits(mamba()), tokens, **PARTLY_SINGLE),
    # ------------------------------------------------------------------ recurrent and convolutional
    "lstm": Architecture(lambda: Sequential(nn.LSTM), lambda: (normal(N, 4, 3, seed=6), classes(N, of=3, seed=5))),
    "gru, both ways": Architecture(
        lambda: Sequential(nn.GRU, bidirectional=True), lambda: (normal(N, 4, 3, seed=6), classes(N, of=3, seed=5))
    ),
    "rnn of two layers": Architecture(
        lambda: Sequential(nn.RNN, num_layers=2), lambda: (normal(N, 4, 3, seed=6), classes(N, of=3, seed=5))
    ),
    "batch norm in eval": Architecture(conv1d_batch_norm, signals),
    "group norm": Architecture(lambda: conv_with(nn.GroupNorm(2, 4)), pictures),
    "layer norm": Architecture(lambda: conv_with(nn.LayerNorm([4, 6, 6])), pictures),
    "instance norm": Architecture(lambda: conv_with(nn.InstanceNorm2d(4, affine=True)), pictures),
    "local response norm": Architecture(lambda: conv_with(nn.LocalResponseNorm(3, alpha=0.5)), pictures),
    "rms norm": Architecture(rms_norm, vectors, SOFT),
    "weight norm, old": Architecture(old_weight_norm, signals, reference=old_weight_norm_by_formula),
    "weight norm, new": Architecture(new_weight_norm, signals, reference=new_weight_norm_by_formula),
    "spectral norm, old": Architecture(lambda: spectral_norm(nn.utils.spectral_norm), vectors),
    "spectral norm, new": Architecture(lambda: spectral_norm(parametrizations.spectral_norm), vectors),
    "u-net": Architecture(UNet, lambda: (normal(N, 1, 4, 4, seed=4), normal(N, 1, 4, 4, seed=5)), F.mse_loss),
    "pools": Architecture(Pools, pictures),
    "depthwise, dilated, transposed": Architecture(unusual_convolutions, lambda: pictures(2)),
    "residual in place": Architecture(Residual, pictures),
    "segmentation": Architecture(
        segmentation, lambda: (normal(N, 1, 4, 4, seed=4), classes(N, 4, 4, of=3, seed=5)), nn.CrossEntropyLoss()
    ),
    # ------------------------------------------------------------------ graphs, physics, mixtures
    "graph, dense": Architecture(lambda: GraphNet(torch.strided), lambda: (normal(N, 4, 3, seed=6), vectors()[1])),
    "graph, sparse coo": Architecture(
        lambda: GraphNet(torch.sparse_coo), lambda: (normal(N, 4, 3, seed=6), vectors()[1])
    ),
    "graph, sparse csr": Architecture(
        lambda: GraphNet(torch.sparse_csr), lambda: (normal(N, 4, 3, seed=6), vectors()[1])
    ),
    "physics by autograd": Architecture(Heat, heat_data, nn.MSELoss()),
    "physics by transforms": Architecture(HeatByTransforms, heat_data, nn.MSELoss()),
    "soft mixture": Architecture(SoftMixture, vectors),
    "top-2 mixture": Architecture(TopMixture, vectors),
    "variational, noise given": Architecture(
        Autoencoder,
        lambda: ((normal(N, 6, seed=1), normal(N, 2, seed=2)), classes(N, 6, of=2, seed=3).to(F64)),
        elbo,
        gauss_newton=False,
    ),
    "hypernetwork": Architecture(
        Hypernetwork, lambda: ((normal(N, 4, seed=1), normal(N, 2, seed=3)), vectors()[1]), nn.CrossEntropyLoss()
    ),
    "equilibrium": Architecture(Equilibrium, vectors),
    "flow": Architecture(
        Flow, lambda: (normal(N, 3, seed=1), normal(N, 3, seed=2)), negative_likelihood, gauss_newton=False
    ),
    "spatial transformer": Architecture(Transformer2d, pictures),
    "products over groups": Architecture(Products, vectors),
    "huber loss": Architecture(SoftMixture, lambda: (vectors()[0], normal(N, 3, seed=2)), nn.HuberLoss(delta=0.7)),
    # PyTorch has no second derivatives of the next three
    "radial basis": Architecture(RadialBasis, vectors, twice_differentiable=False, second_tolerance=1e-6),
    "mobile activations": Architecture(mobile, vectors, twice_differentiable=False, second_tolerance=1e-6),
    "ctc": Architecture(
        Listener,
        lambda: (normal(N, 6, 3, seed=6), 1 + classes(N, 2, of=3, seed=5)),
        ctc,
        gauss_newton=False,
        twice_differentiable=False,
        second_tolerance=1e-6,
    ),
    # ------------------------------------------------------------------ parameters in unusual places
    "tied embeddings": Architecture(TiedEmbeddings, lambda: tokens(7)),
    "shared submodule": Architecture(shared_submodule, vectors),
    "checkpointed": Architecture(Checkpointed, vectors),
    "pruned": Architecture(pruned, vectors),
    "frozen backbone": Architecture(frozen_backbone, pictures),
    "low rank by hand": Architecture(low_rank, vectors, used_before=True),
    "fourier layer of real parameters": Architecture(Spectral, signals),
    "own function": Architecture(Cubic, vectors),
    # ------------------------------------------------------------------ text and attention
    "mean-pooled text": Architecture(Text, lambda: (padded(), vectors()[1])),
    "padding never learned": Architecture(PaddedText, lambda: (padded(), vectors()[1])),
    # PyTorch has no second derivative of it
    "embedding bag": Architecture(
        Bag, lambda: (padded(), vectors()[1]), twice_differentiable=False, second_tolerance=1e-6
    ),
    "attention with missing keys": Architecture(Attentive, attention_data),
    "attention by a kernel of its own": Architecture(
        lambda: OwnKernel(FLASH, MATH),
        lambda: (normal(N, 4, 4, seed=6), vectors()[1]),
        reference=lambda: OwnKernel(MATH),
    ),
    "two inputs, a tuple": Architecture(
        TwoTowers, lambda: ((normal(N, 4, seed=1), normal(N, 3, seed=3)), normal(N, 3, seed=2)), square
    ),
    "two inputs, a dict": Architecture(
        TwoTowers, lambda: ({"right": normal(N, 3, seed=3), "left": normal(N, 4, seed=1)}, vectors()[1])
    ),
}

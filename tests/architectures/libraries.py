"""Small models of transformers and peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def of_logits(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, targets, reduction="none")


def of_token_logits(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits.movedim(-1, 1), targets, reduction="none")


class Logits(nn.Module):
    """Logits alone, (n, C, ...), of a model that returns more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.model(*args, **kwargs).logits.movedim(-1, 1)


_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2, n_inner=12, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **_NO_TOKENS,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def gpt2_checkpointed() -> nn.Module:
    model = gpt2()
    with _of_an_older_name():
        model.gradient_checkpointing_enable()
    return model.train()


@contextmanager
def _of_an_older_name() -> Iterator[None]:
    """Transformers warns of the name that most scripts, and peft, still use."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
        )
        yield


def gpt2_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    options = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    with _of_an_older_name():
        return get_peft_model(gpt2(), LoraConfig(r=2, lora_dropout=0.0, **options)).eval()


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8, use_cache=False, **_NO_TOKENS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def bert_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with _of_an_older_name():
        return get_peft_model(
            bert(), LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
        ).eval()


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", use_cache=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=4, patch_size=2,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def mixtral(experts: str) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=8,
        use_cache=False, **_NO_TOKENS,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation(experts)
    return model


def mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=11, hidden_size=6, state_size=3, num_hidden_layers=1, conv_kernel=2, time_step_rank=2,
        use_cache=False, **_NO_TOKENS,
    )  # fmt: skip
    return MambaForCausalLM(config).eval()

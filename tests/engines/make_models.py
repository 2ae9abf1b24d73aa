"""Makes tiny models with random weights in Hugging Face's format, without a download: ``make_models.py FOLDER``.

Runs in the environment of :mod:`tests.engines.vllm`. What an engine does with them is real but for the text: ``chat``
is a Llama, ``lora`` an adapter for it, ``embed`` and ``rerank`` are Berts. The vocabulary is the 256 bytes.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

HIDDEN, LAYERS, HEAD, CONTEXT = 256, 4, 64, 2048
SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>", "[CLS]", "[SEP]"]
BOS, EOS, PAD, CLS, SEP = range(5)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer_of_bytes() -> Tokenizer:
    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_chat(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of_bytes(), bos_token=SPECIAL[BOS], eos_token=SPECIAL[EOS], pad_token=SPECIAL[PAD]
    )
    tokenizer.model_max_length, tokenizer.chat_template = CONTEXT, TEMPLATE
    tokenizer.save_pretrained(folder / "chat")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=HIDDEN // HEAD // 2,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "chat")


def save_lora(folder: Path) -> None:
    weights = {}
    for layer in range(LAYERS):
        for name, width in (("q_proj", HIDDEN), ("v_proj", HIDDEN // 2)):
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}."
            weights[f"{base}lora_A.weight"] = torch.randn(8, HIDDEN) * 0.5
            weights[f"{base}lora_B.weight"] = torch.randn(width, 8) * 0.5
    (folder / "lora").mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "lora/adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "chat",
    }
    (folder / "lora/adapter_config.json").write_text(json.dumps(adapter))


def save_berts(folder: Path) -> None:
    tokenizer = tokenizer_of_bytes()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        cls_token=SPECIAL[CLS],
        sep_token=SPECIAL[SEP],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.model_max_length = 512
    size = {
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
    }
    BertModel(BertConfig(**size)).save_pretrained(folder / "embed")
    fast.save_pretrained(folder / "embed")
    BertForSequenceClassification(BertConfig(**size, num_labels=1)).save_pretrained(folder / "rerank")
    fast.save_pretrained(folder / "rerank")


def main(folder: Path) -> None:
    torch.manual_seed(0)
    save_chat(folder)
    save_lora(folder)
    save_berts(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

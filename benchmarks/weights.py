"""A small random Llama, written once as safetensors for all designs to load.

python benchmarks/weights.py FOLDER --vocab 32000
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from workload import BOS, EOS, PAD, ModelSize


def save_model(size: ModelSize, folder: Path, seed: int = 0) -> int:
    """Write a random model as safetensors, for all designs to load; gives its number of parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model.num_parameters()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for field in fields(ModelSize):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    print(f"{save_model(ModelSize(**arguments), folder) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()

"""Tiny random models of every architecture, tiny tokenizers, and folders of precomputed activations."""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

torch.set_num_threads(1)

VOCABULARY = 400
TEXTS = [
    "The quick brown fox jumps over the lazy dog. It does so every day, whatever the weather.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2));\n",
    "Naïve café owners say: 日本語 is hard, ☃ is cold, and e\u0301 is two code points.",
    "Short.",
    "Numbers such as 1,234.56 and names such as O'Neill are cut in several ways by tokenizers.",
    "The lazy dog sleeps. The quick fox does not sleep. " * 6,
]

_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
_SHARED = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "pad_token_id": 0}
_LLAMA = {**_SIZES, **_SHARED, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**_LLAMA),
    "qwen2": Qwen2Config(**_LLAMA),
    "gemma2": Gemma2Config(**_LLAMA, head_dim=8, sliding_window=16),
    "mistral": MistralConfig(**_LLAMA, sliding_window=16),
    "granite": GraniteConfig(**_LLAMA, residual_multiplier=0.22, embedding_multiplier=3.0),
    "olmo2": Olmo2Config(**_LLAMA),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=4, n_head=4),
    "gpt_neox": GPTNeoXConfig(**_SIZES, **_SHARED, use_parallel_residual=True),
    "gpt_neox_serial": GPTNeoXConfig(**_SIZES, **_SHARED, use_parallel_residual=False),
    "bert": BertConfig(**_SIZES, **_SHARED),
    "distilbert": DistilBertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=256, dim=32, hidden_dim=64, n_layers=4, n_heads=4
    ),
}
DECODERS = [name for name in CONFIGS if name not in ("bert", "distilbert")]


def make_model(name: str, seed: int = 0) -> torch.nn.Module:
    """A random model of the architecture, with its head; its weights are large enough to tell layers apart."""
    torch.manual_seed(seed)
    config = CONFIGS[name]
    if name == "bert":
        model = BertForMaskedLM(config)
    elif name == "distilbert":
        model = AutoModel.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
    return model.eval()


def _train_byte_level(size: int) -> Tokenizer:
    """As GPT-2 and Llama 3 have it: BPE over bytes, offsets trimmed of white space by default."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _train_word_piece(size: int) -> Tokenizer:
    """As BERT has it: lower case, accents stripped, [CLS] and [SEP] around the text."""
    tokenizer = Tokenizer(tokenizer_models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _train_metaspace(size: int) -> Tokenizer:
    """As Llama 2 and Gemma have it: a beginning-of-sequence token, spaces as ▁, unknown characters as bytes."""
    tokenizer = Tokenizer(tokenizer_models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        [text for text in TEXTS if text.isascii()],
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@cache
def _trained(name: str, size: int) -> str:
    """Training settles ties by chance: once in a process, so that every test gets the same tokenizer."""
    return {"byte_level": _train_byte_level, "word_piece": _train_word_piece, "metaspace": _train_metaspace}[name](
        size
    ).to_str()


def _tokenizer(name: str, size: int, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(name, size)), **special)


def byte_level(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    return _tokenizer("byte_level", size, eos_token="<|end|>")


def word_piece(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _tokenizer("word_piece", size, **special)


def metaspace(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    return _tokenizer("metaspace", size, unk_token="<unk>", bos_token="<s>")


TOKENIZERS = {"byte_level": byte_level, "word_piece": word_piece, "metaspace": metaspace}


def save_checkpoint(folder: Path, name: str = "llama", *, tokenizer: str = "byte_level", seed: int = 0) -> Path:
    """A Hugging Face folder with a random model and a tokenizer."""
    make_model(name, seed).save_pretrained(folder)
    TOKENIZERS[tokenizer]().save_pretrained(folder)
    return folder


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, in memory: it may be overwritten afterwards."""
    return load(file.read_bytes())


def write_activations(
    folder: Path,
    arrays: dict[str, torch.Tensor],
    *,
    shard: int = 40,
    document: np.ndarray | None = None,
    valid: np.ndarray | None = None,
) -> Path:
    """A folder as a user would bring it along."""
    folder.mkdir(parents=True, exist_ok=True)
    positions = len(next(iter(arrays.values())))
    hook_points = {}
    for name, array in arrays.items():
        shards = []
        for number, begin in enumerate(range(0, positions, shard)):
            shards.append(f"{name}-{number:05d}.safetensors")
            save_file({"activations": array[begin : begin + shard].contiguous()}, folder / shards[-1])
        hook_points[name] = {"d_model": array.shape[1], "shards": shards}
    documents = {"document": torch.from_numpy(np.arange(positions) // 10 if document is None else document)}
    if valid is not None:
        documents["valid"] = torch.from_numpy(valid)
    save_file(documents, folder / "documents.safetensors")
    manifest = {
        "format": "featurewatch-activations/1",
        "model": "precomputed",
        "positions": positions,
        "hook_points": hook_points,
        "documents": "documents.safetensors",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def in_place(file: Path, change: Callable[[bytearray], None]) -> None:
    """Change a file's bytes, neither its size nor its time of modification."""
    data, stat = bytearray(file.read_bytes()), file.stat()
    change(data)
    with file.open("r+b") as handle:
        handle.write(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def zero(data: bytearray) -> None:
    """The last two fifths."""
    start = len(data) * 3 // 5
    data[start:] = bytes(len(data) - start)

"""Small checkpoints of images and texts, as transformers' own classes and tokenizers write them.

Every kind has both towers of one or two narrow blocks, random weights, and a real tokenizer of a
few words. `whole` loads one back through transformers alone: the reference.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from featprep.encoders import hf_known
from featprep.encoders.hf_building import quiet_transformers

library: Any = transformers
WORDS = ["a", "of", "the", "photo", "this", "is", "cat", "dog", "red", "car", "house", "tree", "."]
SPELLED = [chr(code) for code in range(33, 127)]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "initializer_range": 0.05,
    "patch_size": 16,
}
TEXT = {**VISION, "num_hidden_layers": 1}
del TEXT["image_size"], TEXT["patch_size"]
KINDS = ("clip", "altclip", "siglip", "siglip2", "naflex", "blip")


def write(kind: str, folder: Path) -> Path:
    """A folder as the hub has it: config, weights, processor and tokenizer."""
    torch.manual_seed(sum(map(ord, kind)))
    config, processor, tokenizer = _MAKERS[kind](folder)
    with quiet_transformers():
        model = _class(kind)(config)
        with torch.no_grad():
            for key, item in model.named_parameters():
                # The library draws them so small that all texts lie on one point.
                if item.ndim > 1 and "embed" not in key:
                    item.mul_(4)
                elif key in ("logit_scale", "logit_bias"):
                    item.fill_({"logit_scale": 2.0, "logit_bias": -1.5}[key])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_roberta_config(folder: Path) -> None:
    """config.json of a text model of transformers', as open_clip's towers name one."""
    text = {**TEXT, "vocab_size": 400, "max_position_embeddings": 40, "pad_token_id": 0}
    library.RobertaConfig(**text).save_pretrained(folder)


def whole(kind: str, folder: Path) -> Any:
    with quiet_transformers():
        return _class(kind).from_pretrained(folder).eval()


def tokenizer_of(folder: Path) -> Any:
    with quiet_transformers():
        return library.AutoTokenizer.from_pretrained(folder)


def _class(kind: str) -> Any:
    names = {
        "clip": "CLIPModel",
        "altclip": "AltCLIPModel",
        "siglip": "SiglipModel",
        "siglip2": "SiglipModel",
        "naflex": "Siglip2Model",
        "blip": "BlipForImageTextRetrieval",
    }
    return getattr(library, names[kind])


def _clip(folder: Path) -> tuple[Any, Any, Any]:
    """Byte-level BPE; a word is made of letters, the last with </w>."""
    letters = [*SPELLED, *(f"{letter}</w>" for letter in SPELLED)]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [*letters, *("".join(pair) for pair in merges), *ends]
    tokenizer = library.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(vocabulary)},
        merges=merges,
        model_max_length=24,
    )
    first, last = len(vocabulary) - 2, len(vocabulary) - 1
    text = {
        **TEXT,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 24,
        "bos_token_id": first,
        "eos_token_id": last,
        "pad_token_id": last,
    }
    config = library.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return config, hf_known.clip(16, 32, 2, 24, 64)[1], tokenizer


def _altclip(folder: Path) -> tuple[Any, Any, Any]:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *SPELLED, "▁", *(f"▁{word}" for word in WORDS)]
    pieces += ["<mask>"]
    tokenizer = library.XLMRobertaTokenizer(
        vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)],
        model_max_length=24,
    )
    text = {
        **TEXT,
        "vocab_size": len(pieces),
        "max_position_embeddings": 40,
        "pad_token_id": 1,
        "project_dim": 20,
        "type_vocab_size": 1,
    }
    config = library.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return config, hf_known.clip(16, 32, 2, 24, 64)[1], tokenizer


def _siglip(folder: Path) -> tuple[Any, Any, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*WORDS, *SPELLED, " ".join(WORDS)]),
        model_writer=model,
        vocab_size=130,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = library.SiglipTokenizer(
        str(folder / "spiece.model"), model_input_names=["input_ids"]
    )
    text = {**TEXT, "vocab_size": 200, "max_position_embeddings": 64, "projection_size": 32}
    config = library.SiglipConfig(text_config=text, vision_config=VISION)
    return config, hf_known.siglip(16, 32, 2, 64, 64)[1], tokenizer


def _gemma() -> Any:
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [*specials, *SPELLED, "▁", *(f"▁{letter}" for letter in SPELLED)]
    merges = [("▁", letter) for letter in SPELLED]
    tokenizer = library.GemmaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=merges,
        model_input_names=["input_ids"],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
    )
    return tokenizer, len(pieces)


def _siglip2(folder: Path) -> tuple[Any, Any, Any]:
    """As google publishes those of a fixed grid: SigLIP's model with Gemma's tokenizer."""
    tokenizer, words = _gemma()
    text = {**TEXT, "vocab_size": words, "max_position_embeddings": 64, "projection_size": 32}
    config = library.SiglipConfig(text_config=text, vision_config=VISION)
    return config, hf_known.siglip(16, 32, 2, 64, 64, resample=2)[1], tokenizer


def _naflex(folder: Path) -> tuple[Any, Any, Any]:
    tokenizer, words = _gemma()
    text = {**TEXT, "vocab_size": words, "max_position_embeddings": 64, "projection_size": 32}
    vision = {key: item for key, item in VISION.items() if key != "image_size"}
    config = library.Siglip2Config(text_config=text, vision_config={**vision, "num_patches": 16})
    return config, hf_known.naflex(32, 2, 64, heads=2)[1], tokenizer


def _blip(folder: Path) -> tuple[Any, Any, Any]:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, *WORDS, *SPELLED, *(f"##{letter}" for letter in SPELLED)]
    tokenizer = library.BertTokenizer(
        vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))},
        model_max_length=24,
    )
    text = {
        **TEXT,
        "vocab_size": len(pieces),
        "max_position_embeddings": 24,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "sep_token_id": 3,
    }
    config = library.BlipConfig(
        text_config=text, vision_config=VISION, image_text_hidden_size=24, projection_dim=24
    )
    side = {"height": 64, "width": 64}
    return config, {**hf_known.blip("", 32, 2)[1], "size": side}, tokenizer


_MAKERS = {
    "clip": _clip,
    "altclip": _altclip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "naflex": _naflex,
    "blip": _blip,
}

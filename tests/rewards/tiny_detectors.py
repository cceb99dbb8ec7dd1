"""Small random detectors and a small CLIP, saved as the real ones are."""

from pathlib import Path

import torch

from flowrl.models.tiny.words import clip_tokenizer

WORDS = ("a", "photo", "of", "cat", "dog", "apple", "red", "blue", "green", "white", "object", "colored")


def save_owlv2(folder: Path, *, side: int = 32) -> Path:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil, Owlv2Processor

    tokenizer = clip_tokenizer(WORDS, max_length=16)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    layer = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = layer | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = Owlv2Config(text_config=text, vision_config=layer | {"image_size": side, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(0)
    network = Owlv2ForObjectDetection(config)
    torch.nn.init.normal_(network.owlv2.text_model.embeddings.token_embedding.weight)
    network.save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessorPil(size={"height": side, "width": side}), tokenizer).save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path) -> Path:
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
        SwinConfig,
    )

    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})
    swin = {"patch_size": 4, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2}
    bert = {"model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 16}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(image_size=32, out_features=["stage2", "stage3", "stage4"], **swin),
        text_config=bert | {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 256},
        d_model=32,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=8,
        **layers,
    )
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_tokenizer(WORDS, max_length=16)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    layer = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = layer | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=layer | {"image_size": 16, "patch_size": 8}, projection_dim=16)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder

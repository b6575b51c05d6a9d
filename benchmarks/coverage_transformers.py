"""Architectures of Hugging Face transformers, built from small random configurations.

No weights are downloaded: what matters here is the graph that each family traces to. Dropout,
caches and training-only outputs are off; masks, rotary embeddings, grouped queries, relative
positions and tied heads are as the family has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Model = tuple[nn.Module, tuple[Tensor, ...]]

_TOKENS = 9
_WORDS = 97
_TEXT = {"vocab_size": _WORDS, "num_hidden_layers": 2, "max_position_embeddings": 32}
_BERT = {**_TEXT, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "head_dim": 8}
_VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


class Output(nn.Module):
    """A model as a function of one or two tensors that returns one tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, first: Tensor, second: Tensor | None = None) -> Any:
        """The output of this name."""
        given = dict(zip(self.names, (first, second), strict=False))
        return getattr(self.model(**given), self.output)


def models() -> list[tuple[str, str, Callable[[], Model]]]:
    """(family, name, factory of (module, example inputs)) of every architecture."""
    text = [
        ("bert", "BertForMaskedLM", "BertConfig", _BERT),
        ("bert", "BertForSequenceClassification", "BertConfig", _BERT),
        ("roberta", "RobertaForSequenceClassification", "RobertaConfig", _BERT),
        ("distilbert", "DistilBertForSequenceClassification", "DistilBertConfig",
         {"vocab_size": _WORDS, "n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 48,
          "max_position_embeddings": 32}),
        ("gpt2", "GPT2LMHeadModel", "GPT2Config",
         {"vocab_size": _WORDS, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 32}),
        ("llama", "LlamaForCausalLM", "LlamaConfig", _LLAMA),
        ("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _LLAMA),
        ("qwen3", "Qwen3ForCausalLM", "Qwen3Config", _LLAMA),
        ("mistral", "MistralForCausalLM", "MistralConfig", {**_LLAMA, "sliding_window": 4}),
    ]  # fmt: skip
    made: list[tuple[str, str, Callable[[], Model]]] = [
        (family, name, _factory(name, config, options, "input_ids", "logits"))
        for family, name, config, options in text
    ]
    t5 = {
        "vocab_size": _WORDS, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2,
        "decoder_start_token_id": 0, "use_cache": False,
    }  # fmt: skip
    gated = {**t5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    swin = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2],
            "num_heads": [2, 4], "window_size": 4}  # fmt: skip
    pixels, classes = "pixel_values", "logits"
    made += [
        ("llama", "LlamaForCausalLM-eager", _eager("LlamaForCausalLM", "LlamaConfig", _LLAMA)),
        ("bert", "BertForMaskedLM-eager", _eager("BertForMaskedLM", "BertConfig", _BERT)),
        ("t5", "T5EncoderModel", _pooled("T5EncoderModel", "T5Config", t5)),
        ("t5", "T5ForConditionalGeneration", _t5("T5ForConditionalGeneration", t5)),
        ("t5", "T5ForConditionalGeneration-gated", _t5("T5ForConditionalGeneration", gated)),
        ("vit", "ViTForImageClassification",
         _factory("ViTForImageClassification", "ViTConfig", _VISION, pixels, classes)),
        ("swin", "SwinForImageClassification",
         _factory("SwinForImageClassification", "SwinConfig", swin, pixels, classes)),
        ("whisper", "WhisperEncoder", _whisper),
        ("clip", "CLIPVisionModelWithProjection",
         _factory("CLIPVisionModelWithProjection", "CLIPVisionConfig",
                  {**_VISION, "projection_dim": 16}, pixels, "image_embeds")),
        ("clip", "CLIPModel", _clip),
    ]  # fmt: skip
    return made


def _build(name: str, config: str, options: dict[str, Any], attention: str = "sdpa") -> nn.Module:
    """A model of a class and configuration of transformers, by name, in evaluation mode."""
    from examples.torchvision_ops import declare

    declare()
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, config)(**options)
    made._attn_implementation = attention
    if hasattr(made, "use_cache"):
        made.use_cache = False
    model: nn.Module = getattr(transformers, name)(made)
    return model.eval()


def _given(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if name == "pixel_values":
        return torch.randn(2, 3, 32, 32, generator=generator)
    return torch.randint(3, _WORDS, (2, _TOKENS), generator=generator)


def _factory(
    name: str, config: str, options: dict[str, Any], source: str, output: str
) -> Callable[[], Model]:
    return lambda: (Output(_build(name, config, options), (source,), output), (_given(source),))


def _eager(name: str, config: str, options: dict[str, Any]) -> Callable[[], Model]:
    """With attention written out: products, mask and softmax."""

    def make() -> Model:
        model = _build(name, config, options, attention="eager")
        return Output(model, ("input_ids",), "logits"), (_given("input_ids"),)

    return make


class Pooled(nn.Module):
    """Features of an encoder, averaged over positions and projected: an encoder in use."""

    def __init__(self, encoder: nn.Module, source: str, width: int) -> None:
        super().__init__()
        self.encoder, self.source = encoder, source
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Any:
        """(N, 5) scores."""
        return self.head(self.encoder(**{self.source: x}).last_hidden_state.mean(1))


def _pooled(name: str, config: str, options: dict[str, Any]) -> Callable[[], Model]:
    def make() -> Model:
        model = _build(name, config, options)
        return Pooled(model, "input_ids", options["d_model"]).eval(), (_given("input_ids"),)

    return make


def _t5(name: str, options: dict[str, Any]) -> Callable[[], Model]:
    """Encoder and decoder with cross attention."""

    def make() -> Model:
        model = _build(name, "T5Config", options)
        names = ("input_ids", "decoder_input_ids")
        decoded = _given("decoder_input_ids")[:, :5]
        return Output(model, names, "logits"), (_given("input_ids"), decoded)

    return make


def _whisper() -> Model:
    options = {
        "vocab_size": _WORDS, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 12, "pad_token_id": 0,
        "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    }  # fmt: skip
    whole: Any = _build("WhisperModel", "WhisperConfig", options)
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(2, 8, 24, generator=generator)
    return Pooled(whole.encoder, "input_features", 32).eval(), (sound,)


def _clip() -> Model:
    text = {**_BERT, "projection_dim": 16, "eos_token_id": 2}
    options = {"text_config": text, "vision_config": {**_VISION, "projection_dim": 16},
               "projection_dim": 16}  # fmt: skip
    model = _build("CLIPModel", "CLIPConfig", options)
    names = ("input_ids", "pixel_values")
    return Output(model, names, "logits_per_image"), tuple(_given(n) for n in names)

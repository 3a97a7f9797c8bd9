"""The text encoders of a backbone: instructions -> the text conditioning of the U-Net.

B batch, E text encoders (one; Stable Diffusion XL has two), T tokens, D width of the states, P of the pooled text
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MAX_CACHED_TEXTS = 2**15
"""Texts whose token ids are cached, of about 0.7 kB each. A full cache is emptied."""


ClipEncoder = CLIPTextModel | CLIPTextModelWithProjection


class TextStates(NamedTuple):
    """The text conditioning. It is a tuple, so that DeepSpeed finds its tensors."""

    sequence: Tensor
    """(B, T, D)."""
    pooled: Tensor | None = None
    """(B, P) of the second text encoder; XL alone."""

    def select(self, places: Sequence[int]) -> "TextStates":
        """The texts at these places, in this order."""
        picked = torch.tensor(places, device=self.sequence.device)
        return TextStates(self.sequence[picked], None if self.pooled is None else self.pooled[picked])

    def repeat_texts(self, copies: int) -> "TextStates":
        """All texts repeated `copies` times, one block after the other."""
        if copies == 1:
            return self
        pooled = None if self.pooled is None else torch.cat([self.pooled] * copies)
        return TextStates(torch.cat([self.sequence] * copies), pooled)

    def unet_inputs(self, height: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
        """The U-Net's keyword arguments for images of height x width pixels: the states, and for XL two more inputs."""
        inputs: dict[str, Any] = {"encoder_hidden_states": self.sequence.to(dtype)}
        if self.pooled is not None:
            sizes = size_ids(height, width).to(self.pooled.device).expand(len(self.pooled), -1)
            inputs["added_cond_kwargs"] = {"text_embeds": self.pooled.to(dtype), "time_ids": sizes}
        return inputs


def size_ids(height: int, width: int) -> Tensor:
    """XL's size conditioning (1, 6) in pixels: original size, top left corner of the crop, target size.

    Podell et al. 2023, section 2.2. Both sizes are those of the model's input, and the crop begins at 0, since pictures
    are resized and not cropped. Training and sampling use the same values, which are the defaults of diffusers' script
    and pipeline.
    """
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)


class TextEncoder(nn.Module):
    """A backbone's text encoders with their tokenizers."""

    def __init__(
        self,
        encoders: Sequence[ClipEncoder],
        tokenizers: Sequence[CLIPTokenizer],
        empty_is_zero: bool = False,
    ) -> None:
        """empty_is_zero: the states of the empty text are zeros, as the base model of XL was trained
        (`force_zeros_for_empty_prompt` of its model_index.json)."""
        super().__init__()
        self.encoders, self.tokenizers = nn.ModuleList(encoders), tuple(tokenizers)
        self.empty_is_zero = empty_is_zero
        self._token_ids: dict[str, Tensor] = {}  # (E, T) by text: each epoch has the same texts

    def reinitialised(self) -> "TextEncoder":
        """A text encoder of the same shapes with new initial weights. This one's modules do not change."""
        encoders = [cast(ClipEncoder, type(encoder)(encoder.config).eval()) for encoder in self.encoders]
        return TextEncoder(encoders, self.tokenizers, self.empty_is_zero)

    def parts(self) -> dict[str, Any]:
        """Encoders and tokenizers by their names in a diffusers folder."""
        suffixes = ("", "_2")[: len(self.encoders)]
        encoders = {f"text_encoder{suffix}": encoder for suffix, encoder in zip(suffixes, self.encoders, strict=True)}
        return encoders | {f"tokenizer{suffix}": each for suffix, each in zip(suffixes, self.tokenizers, strict=True)}

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> token ids (B, E, T), padded and truncated to the tokenizers' length."""
        known = {text: self._token_ids.get(text) for text in texts}
        rows = {text: row for text, row in known.items() if row is not None}
        missing = [text for text in known if text not in rows]
        if missing:
            options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            ids = torch.stack([tokenizer(missing, **options).input_ids for tokenizer in self.tokenizers], dim=1)
            new = dict(zip(missing, ids, strict=True))
            if len(self._token_ids) + len(new) > MAX_CACHED_TEXTS:
                self._token_ids.clear()
            self._token_ids.update(new)
            rows |= new
        return torch.stack([rows[text] for text in texts])

    def forward(self, ids: Tensor) -> TextStates:
        """Token ids (B, E, T) -> states.

        For XL the states are the last layers but one of both encoders, concatenated, and the pooled text of the second.
        """
        if len(self.encoders) == 1:
            return TextStates(self.encoders[0](ids[:, 0]).last_hidden_state)
        outputs = [encoder(ids[:, place], output_hidden_states=True) for place, encoder in enumerate(self.encoders)]
        sequence = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = outputs[-1].text_embeds
        if self.empty_is_zero:
            empty = (ids == self.tokenize([""]).to(ids.device)).flatten(1).all(1)
            sequence = sequence.masked_fill(empty.view(-1, 1, 1), 0)
            pooled = pooled.masked_fill(empty.view(-1, 1), 0)
        return TextStates(sequence, pooled)

    def encode(self, texts: Sequence[str]) -> TextStates:
        """Texts -> their states."""
        return self(self.tokenize(texts).to(self.device))

    def encode_rows(self, texts: Sequence[str]) -> TextStates:
        """The states of texts, one row each; equal texts are encoded once."""
        distinct = list(dict.fromkeys(texts))
        place_of = {text: place for place, text in enumerate(distinct)}
        return self.encode(distinct).select([place_of[text] for text in texts])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

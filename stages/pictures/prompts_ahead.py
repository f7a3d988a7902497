"""Encodes prompts ahead of sampling, for devices that cannot hold text encoders and transformer
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from stages.ladd.backbone import Backbone, Conditioning
from stages.teachers.protocol import Teacher


class PromptsAhead:
    """A `samplers.PromptEncoder` of batches that were encoded before: text encoders and transformer
    take turns on the device, and the one that waits is in host memory.
    """

    def __init__(self, teacher: Teacher, backbone: Backbone) -> None:
        self._teacher, self._backbone = teacher, backbone
        self._kept: dict[tuple[str, ...], Conditioning] = {}

    def prepare(self, batches: Iterable[Sequence[str]]) -> None:
        """Encode these batches and keep them in host memory; forget those of before."""
        device = self._teacher.device
        self._backbone.to("cpu")
        self._kept = {
            tuple(prompts): self._teacher.encode_prompts(prompts).to("cpu") for prompts in batches
        }
        self._teacher.shelve_text_encoders()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self._backbone.to(device)

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of a batch, in host memory; encoded now if it was not before."""
        if tuple(prompts) not in self._kept:
            self.prepare([prompts])
        return self._kept[tuple(prompts)]

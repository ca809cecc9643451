"""BentoML as its tutorials teach it: a `batchable` endpoint that takes PIL images, and eager torch."""

# No `from __future__ import annotations`: BentoML reads the annotations as they are.
import bentoml
import torch
from PIL import Image

from benchmarks.serving.peers.network import torch_network


@bentoml.service(logging={"access": {"enabled": False}}, traffic={"timeout": 120})
class Plain:
    def __init__(self) -> None:
        self.network, self.transform, self.classes = torch_network()

    @bentoml.api(batchable=True)
    def predict(self, images: list[Image.Image]) -> list[dict[str, object]]:
        batch = torch.stack([self.transform(image.convert("RGB")) for image in images])
        with torch.inference_mode():
            probabilities = self.network(batch).softmax(dim=1)
        confidence, best = probabilities.max(dim=1)
        return [
            {"label": self.classes[label], "confidence": value}
            for label, value in zip(best.tolist(), confidence.tolist(), strict=True)
        ]

"""LitServe with eager torch: `python -m benchmarks.serving.peers.litserve_app PORT WORKERS BATCH`."""

# No `from __future__ import annotations`: LitServe reads the annotations as they are.
import io
import os
import sys
from typing import Annotated

import litserve
import torch
from fastapi import File
from PIL import Image

from benchmarks.serving.peers.network import torch_network

WAIT_FOR_A_BATCH = 0.005  # seconds


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["BENCH_WORKERS"])))
        self.network, self.transform, self.classes = torch_network()

    def decode_request(self, request: Annotated[bytes, File()]) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(request)).convert("RGB"))

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.network(x if x.ndim == 4 else x[None]).softmax(dim=1)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, object]:
        confidence, best = output.reshape(-1).max(dim=0)
        return {"label": self.classes[int(best)], "confidence": float(confidence)}


if __name__ == "__main__":
    port, workers, batch = map(int, sys.argv[1:])
    os.environ["BENCH_WORKERS"] = str(workers)
    api = Classifier(max_batch_size=batch, batch_timeout=WAIT_FOR_A_BATCH if batch > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=120)
    server.run(port=port, host="127.0.0.1", log_level="warning", generate_client_file=False, access_log=False)

"""FastAPI, ONNX Runtime and Pillow, as a careful engineer writes it: bare body, a worker a core, one thread each."""

import io
import os
from typing import Annotated

import numpy as np
import onnxruntime
from fastapi import Depends, FastAPI, Request
from PIL import Image

from benchmarks.serving.peers.network import BUNDLE
from perennial.bundle import open_bundle

manifest = open_bundle(BUNDLE).manifest
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["BENCH_ONNX"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


async def body(request: Request) -> bytes:
    return await request.body()


@app.post("/predict")
def predict(data: Annotated[bytes, Depends(body)]) -> dict[str, object]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = manifest.input.resize / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    crop = manifest.input.crop
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)))
    probabilities = session.run(["probabilities"], {"pixels": pixels[np.newaxis]})[0][0]
    best = int(probabilities.argmax())
    return {"label": manifest.classes[best], "confidence": float(probabilities[best])}


@app.get("/readyz")
def ready() -> str:
    return "ok"

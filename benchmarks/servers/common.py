"What the other frameworks' servers share: the model, and the preprocessing that they would write."
import io
import os

import torch
from PIL import Image
from torchvision.transforms import v2

from cifar_nb.core import Settings
from cifar_nb.modelfile import load_model

DTYPE = getattr(torch, os.environ.get("DTYPE", "float32"))


class Model:
    "The bundled model in PyTorch, and torchvision's transforms with the numbers of its card."
    def __init__(self):
        model, self.card = load_model("cifar10", Settings())
        self.model = model.to(DTYPE)
        self.transform = v2.Compose([
            v2.Resize(32), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(self.card.mean, self.card.std)])

    def read(self, data): return self.transform(Image.open(io.BytesIO(data)).convert("RGB"))

    @torch.inference_mode()
    def probabilities(self, x): return (self.model(x.to(DTYPE)).float() / self.card.temperature).softmax(1)

    def answer(self, p):
        confidence, k = p.max(0)
        return {"class_name": self.card.classes[int(k)], "confidence": float(confidence)}

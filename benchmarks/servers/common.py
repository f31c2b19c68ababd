"""What the other frameworks' servers share: the model, and the preprocessing that they would write.

With BACKEND in the environment both are those of our service, so that only the framework differs."""
import io
import os

import torch
from PIL import Image
from torchvision.transforms import v2

from cifar_nb.core import Settings
from cifar_nb.export import with_backend
from cifar_nb.images import normalize
from cifar_nb.modelfile import load_model
from cifar_nb.photos import image_pixels
from cifar_nb.predict import Predictor

DTYPE = getattr(torch, os.environ.get("DTYPE", "float32"))


class Model:
    "The bundled model in PyTorch, and torchvision's transforms with the numbers of its card."
    def __init__(self):
        model, self.card = load_model("cifar10", Settings())
        self.model = model.to(DTYPE)
        self.transform = v2.Compose([
            v2.Resize(32), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(self.card.mean, self.card.std)])

    def read(self, data): return self.see(Image.open(io.BytesIO(data)))

    def see(self, image): return self.transform(image.convert("RGB"))

    @torch.inference_mode()
    def probabilities(self, x): return (self.model(x.to(DTYPE)).float() / self.card.temperature).softmax(1)

    def answer(self, p):
        confidence, k = p.max(0)
        return {"class_name": self.card.classes[int(k)], "confidence": float(confidence)}


class Ours(Model):
    "The same with the backend, the decoder and the resizing of our service."
    def __init__(self):
        self.predictor = with_backend(Predictor.load("cifar10"), os.environ["BACKEND"])
        self.card = self.predictor.card

    def read(self, data): return image_pixels(data, self.card.input_size)

    def see(self, image): return image_pixels(image, self.card.input_size)

    def probabilities(self, x):
        logits = self.predictor.logits(normalize(x, self.card.stats))
        return (logits / self.card.temperature).softmax(1)


def make_model(): return Ours() if os.environ.get("BACKEND") else Model()

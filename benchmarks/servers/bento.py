"BentoML with adaptive batches, as its documentation sets it up: bentoml serve bento:Service"
import bentoml
import torch
from common import make_model
from PIL import Image as Images


@bentoml.service(workers=2, traffic={"timeout": 60})
class Service:
    def __init__(self):
        torch.set_num_threads(1)
        self.model = make_model()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10000)
    def predict(self, file: list[Images.Image]) -> list[dict]:
        x = torch.stack([self.model.see(image) for image in file])
        return [self.model.answer(p) for p in self.model.probabilities(x)]

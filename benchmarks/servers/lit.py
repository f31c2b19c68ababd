"LitServe with batches, as its documentation sets it up: python lit.py PORT"
import sys

import litserve as ls
import torch
from common import make_model


class Api(ls.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.model = make_model()

    def decode_request(self, request): return self.model.read(request["file"].file.read())

    def batch(self, inputs): return torch.stack(list(inputs))

    def predict(self, x): return self.model.probabilities(x)

    def unbatch(self, output): return list(output)

    def encode_response(self, p): return self.model.answer(p)


if __name__ == "__main__":
    api = Api(max_batch_size=16, batch_timeout=.01)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(port=int(sys.argv[1]), generate_client_file=False)

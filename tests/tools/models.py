"Models that behave in a certain way, for tests of what is around them."
from threading import Event

from cifar_nb.predict import Predictor


class Held(Predictor):
    "A model that computes no batch before it may."
    def __init__(self):
        whole = Predictor.load("cifar10")
        super().__init__(whole.model, whole.card, whole.name)
        self.begun, self.go = Event(), Event()

    def answers(self, *args):
        self.begun.set()
        assert self.go.wait(60)
        return super().answers(*args)

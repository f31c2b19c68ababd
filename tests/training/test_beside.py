"benchmarks/beside.py: a published script is ported, and takes turns with a recipe of ours."
import json
import sys
import time

import pytest
import torch
from tools.forked import CONTEXT
from tools.repository import ROOT

from cifar_nb.parts import build_parts
from cifar_nb.recipes import find_recipe

# With the words of airbench94_muon.py that the port replaces, and the names that it uses
SCRIPT = '''
import sys
import torch
import torch.nn.functional as F
with open(sys.argv[0]) as f: code = f.read()

@torch.compile
def double(x): return 2*x

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 10)
        for mod in self.modules(): mod.half()

    def forward(self, x): return self.head(x.mean((2, 3)))

def print_training_details(variables, is_final_entry):
    print("epoch", variables["epoch"], "run", variables["run"])

def load(part):
    data = torch.load(f"cifar10/{part}.pt", map_location=torch.device("cuda"))
    images = (data["images"].half() / 255).permute(0, 3, 1, 2)
    assert images.shape[1:] == (3, 32, 32) and len(data["classes"]) == 10, images.shape
    return images, data["labels"]

def evaluate(model, loader, tta_level=0):
    import time
    time.sleep(2 if tta_level == 0 else .1)
    images, labels = loader
    return (model(images).argmax(1) == labels).float().mean().item()

def main(run, model):
    images, labels = load("train")
    starter = torch.cuda.Event(enable_timing=True)
    ender = torch.cuda.Event(enable_timing=True)
    time_seconds = 0.0
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    starter.record()
    for epoch in range(ceil(8 * 1)):
        F.cross_entropy(model(double(images)), labels).backward()
        opt.step()
        opt.zero_grad()
    ender.record()
    torch.cuda.synchronize()
    time_seconds += 1e-3 * starter.elapsed_time(ender)
    val_acc = evaluate(model, load("test"), tta_level=0)
    print_training_details(locals(), is_final_entry=False)
    tta_val_acc = evaluate(model, load("test"), tta_level=2)
    epoch = "eval"
    print_training_details(locals(), is_final_entry=True)
    return tta_val_acc

from math import ceil
if __name__ == "__main__":
    model = Net().cuda()
    model.compile(mode="max-autotune")
    main("warmup", model)
    accs = torch.tensor([main(run, model) for run in range(200)])
    print("Mean", accs.mean())
'''
TINY = dict(data="synthetic", held_out=0, widths=(8, 8, 8), batch_size=500, epochs=1, precision="float32")


@pytest.fixture(scope="module")
def beside():
    "The script as a module, which its processes find by its name. They are copies, which start in no time."
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import beside
        beside.CONTEXT = CONTEXT
        yield beside
    finally: sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def sides(beside, tmp_path):
    "The processes of the script and of ours, or of the script alone, on synthetic images."
    started = []

    def start(text, both=False):
        (tmp_path / "work").mkdir()
        job = beside.Job(find_recipe("speed94", **TINY), "cpu", True, str(tmp_path / "work"))
        started.append(beside.Side("airbench94_muon", beside.published, job, text))
        if both: started.append(beside.Side("speed94", beside.ours, job))
        return started
    yield start
    for side in started: side.close()
    assert not any(side.process.is_alive() for side in started)


def test_another_version_of_the_script_is_refused(beside):
    with pytest.raises(SystemExit, match=r"'\.cuda\(\)' occurs 0 times and not 1: this is another version"):
        beside.ported(SCRIPT.replace(".cuda()", ""), "airbench94_muon")
    with pytest.raises(SystemExit, match="cannot be ported"): beside.ported(SCRIPT, "another")
    on_a_gpu = beside.ported(SCRIPT, "another", device="cuda")
    assert on_a_gpu.replace("turns(globals())", "range(200)") == SCRIPT
    with pytest.raises(SystemExit, match="occurs 2 times"):
        beside.ported(SCRIPT + "range(200)", "another", device="cuda")


def test_turns(beside, sides, tmp_path):
    path, now = tmp_path / "beside_speed94.json", dict(device="cpu", source="1")
    both = sides(beside.ported(SCRIPT, "airbench94_muon", tiny=True), both=True)
    beside.take_turns(both, 2, path, end=time.monotonic() + 100, now=now)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["pairs"] == len(found["every_pair"]) == 2
    theirs, ours = ([pair[name] for pair in found["every_pair"]] for name in ("airbench94_muon", "speed94"))
    for run in theirs:
        # The last test counts, the one after the epoch does not
        assert run["seconds_as_told"] < run["seconds"] - .1 and run["seconds"] < 2
    assert [run["seed"] for run in ours] == [0, 1] and ours[0]["train_loss"] < 3
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(theirs, ours)]
    assert found["ratio"]["mean"] == pytest.approx(sum(ratios) / 2)

    # It is continued under the same conditions only
    beside.take_turns(both, 3, path, end=time.monotonic() + 100, now=now)
    assert json.loads(path.read_text(encoding="utf-8"))["every_pair"][:2] == found["every_pair"]
    beside.take_turns(both, 1, path, end=time.monotonic() + 100, now=now | dict(source="2"))
    assert json.loads(path.read_text(encoding="utf-8"))["pairs"] == 1


def test_the_time_is_over(beside, sides, tmp_path):
    path = tmp_path / "beside.json"
    theirs = sides(beside.ported(SCRIPT.replace("time.sleep(", "time.sleep(100*"), "airbench94_muon"))
    beside.take_turns(theirs, 1, path, end=time.monotonic() + .5, now=dict(device="cpu"))
    assert not path.exists() and theirs[0].process.is_alive()


def test_a_script_that_fails(beside, sides):
    theirs, = sides(beside.ported(SCRIPT.replace('"images"', '"pixels"'), "airbench94_muon"))
    with pytest.raises(SystemExit, match="airbench94_muon ended instead of making a run"): theirs.run(0)
    theirs.process.join(20)
    assert theirs.process.exitcode == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_a_network_that_is_used_again_is_trained_as_a_new_one(beside, compiled):
    recipe = find_recipe("speed94", **TINY, compiled=compiled)
    data = beside.load_dataset("synthetic")

    def trained(seed, kept=None):
        changes = dict(seed=seed, compiled=compiled and kept is None)
        parts = build_parts(beside.changed(recipe, **changes), data.train[:1000], data.stats)
        if kept is not None: parts = beside.renewed(kept, parts)
        parts.train(recipe.epochs)
        return parts

    with torch.compiler.set_stance("force_eager"):  # all but the compiler, which takes a minute
        new = trained(1).model.state_dict()
        used = trained(0)
        again = trained(1, used)
    assert again.model is used.model and again.learner is used.learner
    assert all(torch.equal(new[name], v) for name, v in again.model.state_dict().items())

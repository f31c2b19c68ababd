"`doctor` asks a running service whether it answers as its model does."
import json

from tools.command import run
from tools.server import service

ASK = ("--data", "synthetic", "--images", "40")
QUICK = ("--data", "synthetic", "--epochs", "1", "--held-out", "0.6", "--precision", "float32",
         "--device", "cpu")


def last_line(said): return said.splitlines()[-1].strip().removeprefix("cifar-nb: ")  # After a progress bar


def trained(folder, seed):
    out = folder / f"shapes{seed}.safetensors"
    code, _, said = run("train", *QUICK, "--seed", str(seed), "--out", out)
    assert code == 0, said
    return out


def test_the_right_model_the_wrong_model_and_a_key(tmp_path):
    right, wrong = trained(tmp_path, 0), trained(tmp_path, 1)
    with service(tmp_path, "--model", str(right), CIFAR_NB_API_KEY="open sesame!") as it:
        key = ("--url", it.url, "--key", "open sesame!")
        code, out, said = run("doctor", right, *ASK, *key)
        assert code == 0 and "the service answers as the model does (100.0% the same class)" in out, said
        code, out, _ = run("doctor", wrong, *ASK, *key, "--json")
        found = json.loads(out)
        assert code == 1 and "no known mistake explains it" in found["said"][0]
        assert found["images"] == 40 and found["matches"][0]["name"] == "none"
        code, _, said = run("doctor", right, *ASK, "--url", it.url)
        assert code == 2 and last_line(said) == f"{it.url}/predict answers 401: give its key with --key"
        code, _, said = run("doctor", "cifar10", *ASK, *key)
        assert code == 4 and "are not those of synthetic" in said


def test_no_service(tmp_path):
    model = trained(tmp_path, 0)
    problems = {"http://127.0.0.1:1": "does not answer", "file:///etc/passwd": "is not the address"}
    for url, problem in problems.items():
        code, out, said = run("doctor", model, *ASK, "--url", url)
        assert code == 2 and problem in last_line(said) and "Traceback" not in said and not out

"What /openapi.json says is so: hundreds of requests made from it, some as it wants them and some not, and every answer compared with it."
import base64
import io
from collections import Counter

import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode

from cifar_nb.core import Settings
from cifar_nb.data import FORMATS, synthetic
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served


def pictures():
    for kind in FORMATS:
        Image.fromarray(synthetic("test").pixels[7].permute(1, 2, 0).numpy()).save(file := io.BytesIO(), kind)
        yield file.getvalue()


# That bytes are a picture cannot be said in a schema, and so those that shall be accepted are some; others are sent by test_serve.py
FILES = list(pictures())
schemathesis.openapi.format("binary", st.sampled_from(FILES))
schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(data).decode() for data in FILES]))


def can_be_told(case):
    "Whether a form can say what is wrong in it: a form has no lists, so an empty one is no field at all and one of a single number is that number."
    return not (case.media_type == "multipart/form-data" and isinstance(case.body, dict) and isinstance(case.body.get("top_k"), list))


def made(url, mode, key, examples):
    "Requests of one kind to every operation, each answer checked in every way that schemathesis knows. Counts them."
    seen, headers = Counter(), {"X-API-Key": key} if key else {}
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()

        @settings(max_examples=5 if operation.path == "/model/reload" and key else examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def check(case):
            assume(can_be_told(case))
            seen[case.operation.label] += 1
            case.call_and_validate(headers=headers)
        try: check()
        except Unsatisfiable: pass  # nothing can be wrong with a request that has no parts
    return seen


def test_hundreds_of_requests_are_answered_as_documented():
    seen = Counter()
    for key in ("open sesame", None):
        with served(create_app(Settings(api_key=key), Predictor.load("simple"))) as url:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE): seen += made(url, mode, key, 50 if key else 10)
    assert len(seen) == 11 and sum(seen.values()) >= 550, seen

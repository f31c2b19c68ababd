"""What /openapi.json says is so.

Hundreds of requests are made from it, as it wants them and otherwise; every answer is compared with it."""
import base64
from collections import Counter
from contextlib import suppress

import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from tools.files import BASE, saved

from cifar_nb.imagefile import WEB_FORMATS
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

# A schema cannot say that bytes are an image, so those that must be accepted are drawn from these files;
# test_files.py sends others
FILES = [saved(BASE, kind) for kind in WEB_FORMATS]
schemathesis.openapi.format("binary", st.sampled_from(FILES))
schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(data).decode() for data in FILES]))
QUIET = dict(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def is_binary(value):
    "Whether the service would take a field for a file, by its first bytes."
    data = value if isinstance(value, bytes) else str(value).encode()
    return any(byte < 9 or 13 < byte < 32 for byte in data[:64])


def can_be_told(case):
    """Whether a request can say what is wrong in it.

    A form has no lists: an empty one is no field at all, and one of a single number is that number. An empty
    field is one that a person has left empty. A field that is not text is taken for a file, under any name.
    And an address of thousands of bytes is too long, whatever is in it."""
    if len(str(case.query)) > 600: return False
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict): return True
    top_k = case.body.get("top_k")
    others = [value for name, value in case.body.items() if name not in ("file", "files")]
    return not isinstance(top_k, list) and top_k != "" and not any(map(is_binary, others))


def send(url, mode, key, examples):
    "Send requests of one kind to every operation; schemathesis checks each answer. Counts them."
    seen, headers = Counter(), {"X-API-Key": key} if key else {}
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()
        slow = operation.path == "/model/reload" and key

        @settings(max_examples=5 if slow else examples, **QUIET)
        @given(operation.as_strategy(generation_mode=mode))
        def check(case):
            assume(can_be_told(case))
            seen[case.operation.label] += 1
            case.call_and_validate(headers=headers)
        with suppress(Unsatisfiable): check()  # nothing can be wrong with a request that has no parts
    return seen


def test_hundreds_of_requests_are_answered_as_documented():
    seen = Counter()
    for key in ("open sesame", None):
        predictor = Predictor.load("simple")
        # A model without thresholds for prediction sets may refuse a coverage, which a schema cannot say
        predictor.card = predictor.card.model_copy(update=dict(set_thresholds=(.1,) * 50))
        app = create_app(ServiceSettings(api_key=key, backend="eager"), predictor)
        with served(app) as url:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                seen += send(url, mode, key, 50 if key else 10)
    assert len(seen) == 14 and sum(seen.values()) >= 550, seen

"The files that ship the service agree with it and with one another. No Docker and no network is needed."
import configparser
import json
import re
import shutil
import subprocess
import sys

import httpx
import pytest
import yaml
from tools.files import PNG
from tools.repository import ROOT

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served, server_config
from cifar_nb.settings import ServiceSettings

INI = configparser.ConfigParser(delimiters=["="])
INI.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = INI["DEFAULT"]
DEPLOY = ROOT / "deploy"
YAML = [ROOT / "compose.yaml", *sorted(DEPLOY.rglob("*.yml")), *sorted(DEPLOY.rglob("*.yaml"))]
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "cifar_nb.json"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
OBJECTS = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))}
POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
ENVIRONMENT = {f"CIFAR_NB_{name.upper()}" for name in ServiceSettings.model_fields}
# What the server may still take for requests that have begun, once it no longer drains
FINISHING = server_config("cifar_nb.workers:app_of_worker").timeout_graceful_shutdown


@pytest.fixture(scope="module")
def app():
    return create_app(ServiceSettings(backend="eager"), Predictor.load("cifar10"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_each_file_is_yaml(path):
    assert all(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_what_the_dockerfile_copies_is_there_and_not_ignored():
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    copied = " ".join(lines).split()
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"settings.ini", "setup.py", "cifar_nb"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied)


def test_the_variants_are_extras():
    named = re.search(r'full\) more="\[(.+)\]"', DOCKERFILE)[1].split(",")
    assert all(f"{name}_requirements" in SETTINGS for name in named)
    assert SERVICES["service"]["build"]["args"] == {"VARIANT": "serve"}
    assert SERVICES["mlflow"]["build"]["args"] == {"VARIANT": "full"}


def test_the_label_names_the_repository():
    source = re.search(r'image\.source="(.+?)"', DOCKERFILE)[1]
    assert source == f"https://github.com/{SETTINGS['user']}/{SETTINGS['repo']}"


WITHOUT = """
import sys
for name in sys.argv[1:]: sys.modules[name] = None
import httpx
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings
from cifar_nb import cli, workers
image = open("cifar_nb/static/samples/frog.jpg", "rb").read()
with served(create_app(ServiceSettings(backend="bfloat16"), Predictor.load("cifar10"))) as url:
    for path in ("/predict?view=true", "/predict?tta=true", "/explain"):
        print(httpx.put(url + path, content=image, timeout=60).json()["class_name"])
"""


def test_the_service_needs_nothing_that_the_image_leaves_out():
    unused = re.search(r'UNUSED="(.+)"', DOCKERFILE)[1].replace("fonttools", "fontTools").split()
    assert {"torchvision", "matplotlib", "sympy"} <= set(unused)
    command = [sys.executable, "-c", WITHOUT, *unused]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.split() == ["frog"] * 3


@pytest.mark.parametrize("path", [ROOT / "Dockerfile", *YAML], ids=lambda path: path.name)
def test_variables_are_settings(path):
    named = set(re.findall(r"CIFAR_NB_\w+", path.read_text(encoding="utf-8")))
    assert named <= ENVIRONMENT


def environment_of_the_image():
    return dict(re.findall(r"(CIFAR_NB_\w+)=(\S+)", DOCKERFILE))


def test_the_values_are_valid():
    given = environment_of_the_image() | SERVICES["service"]["environment"]
    given |= {one["name"]: one["value"] for one in CONTAINER["env"] if "value" in one}
    fields = {name.removeprefix("CIFAR_NB_").lower(): value for name, value in given.items()
              if name in ENVIRONMENT}
    settings = ServiceSettings.read(**fields)
    assert settings.host == "0.0.0.0" and settings.log_json


def test_the_ports_agree():
    port = environment_of_the_image()["CIFAR_NB_PORT"]
    assert f"\nEXPOSE {port}\n" in DOCKERFILE and f"127.0.0.1:{port}/health" in DOCKERFILE
    assert SERVICES["service"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"proxy_pass http://service:{port};" in NGINX
    assert f'"service:{port}"' in (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    (named,) = CONTAINER["ports"]
    assert named == {"name": "http", "containerPort": int(port)}
    assert OBJECTS["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    inside = {port.rpartition(":")[2] for port in SERVICES["proxy"]["ports"]}
    assert inside == set(re.findall(r"listen (\d+)", NGINX))


def test_the_user_agrees():
    user = re.search(r"^USER (\d+):\1$", DOCKERFILE, re.M)[1]
    assert f"--uid {user} " in DOCKERFILE
    assert {POD["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}


def test_what_is_written_to_is_mounted():
    assert SERVICES["service"]["read_only"] and CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    folder = environment_of_the_image()["CIFAR_NB_DATA_DIR"]
    places = {*SERVICES["service"]["tmpfs"], *(text.split(":")[1] for text in SERVICES["service"]["volumes"])}
    assert places == {"/tmp", folder, environment_of_the_image()["CIFAR_NB_MODELS_DIR"]}
    assert {one["mountPath"] for one in CONTAINER["volumeMounts"]} == {"/tmp", folder}
    assert {one["name"] for one in CONTAINER["volumeMounts"]} == {one["name"] for one in POD["volumes"]}


def test_there_is_time_to_stop():
    drain = ServiceSettings().drain_seconds
    assert int(SERVICES["service"]["stop_grace_period"].removesuffix("s")) >= drain + FINISHING + 5
    drain = float(next(one["value"] for one in CONTAINER["env"] if one["name"] == "CIFAR_NB_DRAIN_SECONDS"))
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] >= before + drain + FINISHING + 5


def test_probes_are_routes(app):
    routes = app.openapi()["paths"].keys()
    probes = {CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"/health", "/live"} and probes <= routes
    hidden = re.search(r"location ~ \^/\((.+)\)", NGINX)[1].split("|")
    assert hidden == ["metrics", "model/reload"] and {f"/{name}" for name in hidden} <= routes


def test_the_service_alone_starts_without_a_profile():
    assert [name for name, one in SERVICES.items() if "profiles" not in one] == ["service"]
    profiles = {profile for one in SERVICES.values() for profile in one.get("profiles", ())}
    assert profiles == {"proxy", "monitoring", "tracking"}
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert all(f"--profile {name} " in readme for name in profiles) and len(readme.split()) <= 400


def test_only_the_proxy_is_open_to_other_machines():
    is_open = {name for name, one in SERVICES.items()
               if any(not port.startswith("127.0.0.1:") for port in one.get("ports", ()))}
    assert is_open == {"proxy"}


def test_secrets_are_files_that_git_ignores():
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    used = {name for one in SERVICES.values() for name in one.get("secrets", ())}
    assert used == set(COMPOSE["secrets"])
    for name, secret in COMPOSE["secrets"].items():
        assert secret["file"] == f"deploy/secrets/{name}" and f"deploy/secrets/{name}" in readme
    for folder in ("secrets", "models"):
        assert "\n*\n" in (DEPLOY / folder / ".gitignore").read_text(encoding="utf-8")


def test_mounted_files_are_there():
    mounted = [text.split(":")[0] for one in SERVICES.values() for text in one.get("volumes", ())]
    assert all((ROOT / name).exists() for name in mounted if name.startswith("./"))
    assert {name for name in mounted if not name.startswith("./")} == set(COMPOSE["volumes"])


def test_only_the_proxy_is_believed():
    believed = SERVICES["service"]["environment"]["FORWARDED_ALLOW_IPS"]
    assert believed == SERVICES["proxy"]["networks"]["default"]["ipv4_address"]
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in NGINX


def test_the_limits_of_nginx_fit_those_of_the_service():
    service = ServiceSettings()
    assert int(re.search(r"client_max_body_size (\d+)m", NGINX)[1]) * 2**20 >= service.max_body_bytes
    assert int(re.search(r"client_header_timeout (\d+)s", NGINX)[1]) <= service.max_header_seconds
    assert int(re.search(r"proxy_read_timeout (\d+)s", NGINX)[1]) > 2 * service.max_wait


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_nginx_takes_its_configuration(tmp_path):
    request = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=localhost",
               "-keyout", tmp_path / "tls_key", "-out", tmp_path / "tls_certificate"]
    subprocess.run(request, check=True, capture_output=True)
    text = NGINX.replace("/run/secrets", str(tmp_path)).replace("//service:", "//127.0.0.1:")
    whole = f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {text} }}"
    (tmp_path / "nginx.conf").write_text(whole, encoding="utf-8")
    command = ["nginx", "-t", "-q", "-p", tmp_path, "-e", "stderr", "-c", tmp_path / "nginx.conf"]
    tested = subprocess.run(command, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr


@pytest.fixture(scope="module")
def exported(app):
    "What `/metrics` says after a prediction: each series with the names of its labels."
    app.state.engine.metrics.count_correction("cat")
    with served(app) as url:
        httpx.post(f"{url}/predict", content=PNG, timeout=60).raise_for_status()
        text = httpx.get(f"{url}/metrics").text
    found = re.findall(r"^(\w+)(?:{(.*)})? ", text, re.M)
    return {name: set(re.findall(r'(\w+)="', labels)) for name, labels in found}


RULES = yaml.safe_load((DEPLOY / "rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
PANELS = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
QUERIES = [rule["expr"] for rule in RULES]
QUERIES += [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("query", QUERIES)
def test_queries_use_what_is_exported(exported, query):
    assert len(exported) > 10
    for name, labels in re.findall(r"\b(cifar_nb_\w+)(?:{(.*?)})?", query.replace('job="cifar_nb"', "")):
        assert name in exported
        assert set(re.findall(r'(\w+)[=!]~?"', labels)) <= exported[name], name
    assert set(re.findall(r"cifar_nb:[\w:]+", query)) <= RECORDED


def test_the_autoscaler_asks_for_a_metric_that_is_exported(exported):
    (metric,) = OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in exported


def test_the_rules_know_all_routes_that_take_an_image(app):
    routes = {path for path, one in app.openapi()["paths"].items() if "post" in one}
    patterns = {found for query in QUERIES for found in re.findall(r'route=~"(.+?)"', query)}
    (pattern,) = patterns
    counted = {path for path in routes if re.fullmatch(pattern, path)}
    assert routes - counted == {"/corrections", "/model/reload"}


def test_the_queue_is_called_full_before_it_is():
    rule = next(rule for rule in RULES if rule.get("alert") == "QueueFull")
    assert int(rule["expr"].rpartition("> ")[2]) == int(.8 * ServiceSettings().max_waiting)


def test_each_alert_is_tested_firing():
    cases = yaml.safe_load((DEPLOY / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {one["alertname"] for case in cases for one in case["alert_rule_test"] if "exp_alerts" in one}
    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool; on Debian: apt-get install prometheus")
@pytest.mark.parametrize("command", [
    ("check", "config", "--syntax-only", "prometheus.yml"), ("check", "rules", "rules.yml"),
    ("test", "rules", "rules_test.yml")], ids=" ".join)
def test_promtool_accepts_them(command):
    tested = subprocess.run(["promtool", *command], cwd=DEPLOY, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout + tested.stderr

"""Metadata of a card, as the Hub takes them."""

import http.server
import json
import math
import re
import threading

import huggingface_hub.constants
import pytest
import yaml
from helpers.cards import record, without_records
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import HFValidationError, validate_repo_id

from modeling_treediff.hub.card import render_card
from modeling_treediff.hub.card_metadata import HUB_LICENSES, describe


def check_as_the_hub_does(content: str) -> list[str]:
    """Return what is wrong with a card's metadata: the rules of the Hub's documentation of model cards."""
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)[1])
    errors = [f'"{key}" must be a string' for key in ("library_name", "pipeline_tag") if not isinstance(data[key], str)]
    if "license" in data and data["license"] not in HUB_LICENSES | {"other"}:
        errors.append('"license" must be one of the known ones')
    if data.get("license") == "other" and not re.fullmatch(r"[a-z0-9.-]+", data.get("license_name", "")):
        errors.append('"license_name" is needed')
    for repository in [*data.get("datasets", []), *([data["base_model"]] if "base_model" in data else [])]:
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            errors.append(str(error))
    for model in data.get("model-index", []):
        for result in model["results"]:
            if not (isinstance(model["name"], str) and result["task"]["type"] and result["dataset"]["name"]):
                errors.append('"model-index" is not complete')
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", result["dataset"]["type"]):
                errors.append('"dataset.type" is no data set id')
            if not all(isinstance(metric["value"], float | int) and metric["type"] for metric in result["metrics"]):
                errors.append('"metrics" must have values')
    return errors


@pytest.fixture
def validator(monkeypatch):
    """The Hub's /api/validate-yaml on this machine, which huggingface_hub's own client asks."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            errors = check_as_the_hub_does(body["content"]) if self.path == "/api/validate-yaml" else ["no such path"]
            asked.append(body["repoType"])
            answer = "\n".join(errors).encode()
            self.send_response(400 if errors else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield asked
        server.shutdown()


def test_huggingface_hubs_own_validator_takes_the_card(loaded, checkpoint, tmp_path, validator):
    for card in (render_card(loaded, checkpoint), without_records(loaded, checkpoint, tmp_path)):
        ModelCard(card).validate()
    for wrong in ("license: free as in beer", "datasets:\n- /home/me/corpus.txt"):
        with pytest.raises(ValueError, match="license|Repo id"):
            ModelCard(re.sub("^license: .*$", wrong, render_card(loaded, checkpoint), flags=re.M)).validate()
    assert validator == ["model"] * 4


def test_metadata_comes_back_as_it_was_written(checkpoint):
    card = ModelCard.load(checkpoint / "README.md")
    assert str(card) == (checkpoint / "README.md").read_text("utf-8")
    assert metadata_load(checkpoint / "README.md") == card.data.to_dict()
    index = card.data.to_dict()["model-index"]
    assert eval_results_to_model_index(*model_index_to_eval_results(index)) == index
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == (
        "transformers",
        "text-generation",
        "apache-2.0",
    )
    training, evaluation = record(checkpoint), record(checkpoint, "evaluation.json")
    found = {
        (result.dataset_name, result.dataset_split, result.metric_type): result for result in card.data.eval_results
    }
    nelbo = found["corpus.txt", "held-out", "nelbo"]
    assert nelbo.metric_value == training["nelbo"]
    assert nelbo.metric_args == {"standard_error": training["nelbo_standard_error"]}
    assert found["corpus.txt", "held-out", "perplexity"].metric_value == math.exp(training["nelbo"])
    for row in evaluation["texts"]:
        for metric in ("nelbo", "perplexity", "bits_per_byte"):
            assert found[row["source"]["name"], None, metric].metric_value == pytest.approx(row[metric], rel=1e-12)
    assert len(found) == 2 + 2 * 3


@pytest.mark.parametrize(
    ("stated", "license", "license_name"),
    [("Apache-2.0", "apache-2.0", None), ("PDDL", "pddl", None), ("My License, 1", "other", "my-license-1")],
)
def test_license_data_set_and_base_model_are_named_as_the_hub_names_them(stated, license, license_name):
    on_hub, local = {"name": "someone/texts", "on_hub": True}, {"name": "corpus.txt", "on_hub": False}
    data = ModelCardData()
    describe(data, "a-model", {"license": stated, "text": on_hub, "base_model": on_hub | {"name": "me/base"}}, {})
    assert (data.license, data.license_name) == (license, license_name)
    assert data.datasets == ["someone/texts"] and data.base_model == "me/base"
    data = ModelCardData()
    describe(data, "a-model", {"text": local, "base_model": local}, {})
    assert data.to_dict() == {}


def test_the_beginning_of_a_text_does_not_pass_for_all_of_it(loaded, checkpoint):
    whole = record(checkpoint, "evaluation.json") | {"limit": None}
    for limit, part in ((None, ""), (3, ", of the first 3 documents")):
        (checkpoint / "evaluation.json").write_text(json.dumps(whole | {"limit": limit}))
        results = ModelCard(render_card(loaded, checkpoint)).data.eval_results
        names = {result.metric_name for result in results if result.dataset_name == "other.txt"}
        assert names == {
            f"{name}{part}"
            for name in ("Perplexity, upper bound", "NELBO, nats per token", "Bits per byte, upper bound")
        }

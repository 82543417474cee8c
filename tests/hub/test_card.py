"""The model card: every number has a record of the very weights behind it, and the Hub would take the metadata."""

import http.server
import json
import math
import re
import shutil
import threading

import huggingface_hub.constants
import pytest
import torch
import yaml
from helpers.hub_double import HubDouble
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, SAMPLE, run_here, run_python
from helpers.tiny_run import tiny_run
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import HFValidationError, validate_repo_id
from jinja2 import Environment, meta
from transformers import AutoModel, dynamic_module_utils

from modeling_treediff import TreeDiffForDiffusionLM, TreeDiffModel, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.hub.card import MARK, read_template, render_card, write_card
from modeling_treediff.hub.card_metadata import HUB_LICENSES, describe
from modeling_treediff.hub.records import weights_sha256
from modeling_treediff.hub.tree_sketch import BRANCHES, sketch_tree
from modeling_treediff.text import read_documents
from modeling_treediff.training.run.checkpoints import find_damage

TEMPLATE = (REPOSITORY / "model_card.md").read_text(encoding="utf-8")
ON_THE_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
MEASURED = ("Training", "Likelihood of further texts")  # sections
SIZES = ["--hidden-size", "16", "--heads", "2", "--layers", "1", "--sequence-length", "16", "--batch-size", "4"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A checkpoint with its records, as the scripts make them."""
    folder = tmp_path_factory.mktemp("card")
    documents = [document[:2000] for document in read_documents(SAMPLE / "validation.txt.xz")]
    (folder / "corpus.txt").write_text("\n\n".join(documents), "utf-8")
    (folder / "other.txt").write_text(documents[0][:600].replace("\n", " "), "utf-8")
    training = ["--text", folder / "corpus.txt", "--hold-out-every", "5", "--output", folder / "model"]
    steps = ["--max-steps", "2", "--warmup-steps", "1", "--save-every", "0", "--license", "Apache-2.0"]
    ran = run_here("train", *training, *SIZES, *steps)
    assert ran.returncode == 0, ran.stderr
    assert "± " in (folder / "model" / "README.md").read_text("utf-8")
    where = ["--json", folder / "model" / "evaluation.json"]
    texts = [folder / "other.txt", folder / "corpus.txt"]
    ran = run_here("evaluate", folder / "model", *texts, "--limit", "1", *where)
    assert ran.returncode == 0, ran.stderr
    return folder / "model"


@pytest.fixture
def checkpoint(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "checkpoint")


@pytest.fixture
def loaded(checkpoint):
    return TreeDiffForDiffusionLM.from_pretrained(checkpoint)


def record(folder, name="result.json"):
    return json.loads((folder / name).read_text("utf-8"))


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## )", card, re.MULTILINE | re.DOTALL)[1]


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d.,]*", text)


def without_records(model, folder, tmp_path) -> str:
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("result.json", "evaluation.json"))
    return render_card(model, bare)


# ---- numbers --------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_records_say(loaded, checkpoint):
    card, training = render_card(loaded, checkpoint), record(checkpoint)
    assert card == (checkpoint / "README.md").read_text("utf-8")  # as the scripts have left it
    nats, error = training["nelbo"], training["nelbo_standard_error"]
    assert f"| {nats:.3f} ± {error:.3f} nats per token |" in card
    assert f"≤ {math.exp(nats):,.0f} ± {math.exp(nats) * error:,.0f} |" in card
    assert f"{training['tokens_seen'] / training['training_seconds']:,.0f} tokens per second" in card
    assert f"| {training['peak_memory_bytes']['resident'] / 2**30:.2f} GiB resident" in card
    assert f"| `{training['command']}` |" in card and training["commit"] in card and training["device"] in card
    assert "| `corpus.txt` |" in card and "| one document in 5 of the text |" in card
    evaluation = record(checkpoint, "evaluation.json")
    for row in evaluation["texts"]:
        low, high = row["confidence_interval"]
        assert f"≤ {row['nelbo']:.3f} ({low:.3f} to {high:.3f})" in card
        assert f"| {row['num_tokens']:,} |" in card
    assert evaluation["texts"][0]["protocol"]["description"] in card
    assert f"{sum(count_parameters(loaded.config).values()):,}" in card and loaded.tree.sha256 in card


def test_without_records_no_section_of_measurements_holds_a_number(loaded, checkpoint, tmp_path):
    """So each number there comes from a record: the template has none of its own, but for the 95 % of intervals."""
    card, bare = render_card(loaded, checkpoint), without_records(loaded, checkpoint, tmp_path)
    for title in MEASURED:
        assert len(numbers(section(card, title))) > 10
        assert set(numbers(section(bare, title))) <= {"95"} and "not measured" in section(bare, title)
    assert "model-index" not in bare and "license" not in bare.split("\n---\n")[0] and "not stated" in bare


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *(("result.json", [key]) for key in ("nelbo", "nelbo_standard_error", "validation_tokens", "unigram_entropy")),
        *(("result.json", [key]) for key in ("training_seconds", "tokens_seen", "steps", "seed", "hold_out_every")),
        ("result.json", ["peak_memory_bytes", "resident"]),
        ("result.json", ["level_losses", 1]),
        *(("evaluation.json", ["texts", 1, key]) for key in ("nelbo", "perplexity", "bits_per_byte", "num_tokens")),
        *(("evaluation.json", ["texts", 0, f"{key}_interval", 0]) for key in ("confidence", "perplexity")),
        *(("evaluation.json", ["texts", 0, key]) for key in ("num_samples", "standard_error")),
    ],
)
def test_a_number_in_a_record_is_the_cards(loaded, checkpoint, name, path):
    before, changed = render_card(loaded, checkpoint), record(checkpoint, name)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = inner[path[-1]] * 2 + 1
    (checkpoint / name).write_text(json.dumps(changed))
    assert render_card(loaded, checkpoint) != before
    inner[path[-1]] = None  # as JSON has what was not finite
    (checkpoint / name).write_text(json.dumps(changed))
    assert len(numbers(render_card(loaded, checkpoint))) < len(numbers(before))


@pytest.mark.parametrize("name", ["result.json", "evaluation.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"nelbo": 1.5}', '{"nelbo": 1.5, "weights_sha256": {}}'])
def test_a_record_that_names_no_weights_does_not_count(loaded, checkpoint, tmp_path, name, content):
    bare = without_records(loaded, checkpoint, tmp_path)
    for file in ("result.json", "evaluation.json"):
        (checkpoint / file).unlink()
    (checkpoint / name).write_text(content)
    assert render_card(loaded, checkpoint) == bare


def test_other_weights_are_not_measured(loaded, checkpoint, tmp_path):
    bare = without_records(loaded, checkpoint, tmp_path)
    with torch.no_grad():
        loaded.head.nodes.bias[0] += 1
    save_checkpoint(loaded, checkpoint)
    assert (checkpoint / "result.json").exists()
    assert (checkpoint / "README.md").read_text("utf-8") == bare == render_card(loaded, checkpoint)


def test_records_travel_with_their_weights_and_with_no_others(loaded, checkpoint, tmp_path):
    save_checkpoint(loaded, tmp_path / "copy")
    for name in ("result.json", "evaluation.json"):
        assert record(tmp_path / "copy", name) == record(checkpoint, name)
    for title in MEASURED:
        copied = (tmp_path / "copy" / "README.md").read_text("utf-8")
        assert section(copied, title) == section(render_card(loaded, checkpoint), title)
    save_checkpoint(loaded, tmp_path / "sharded", max_shard_size="100KB")
    assert len(weights_sha256(tmp_path / "sharded")) > 1 and not (tmp_path / "sharded" / "result.json").exists()
    (tmp_path / "copy" / "result.json").write_text("{}")  # a file that is there already is not replaced
    save_checkpoint(loaded, tmp_path / "copy")
    assert record(tmp_path / "copy") == {}
    assert "≤" not in section((tmp_path / "copy" / "README.md").read_text("utf-8"), "Training")


# ---- metadata -------------------------------------------------------------------------------------------------


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


# ---- text -----------------------------------------------------------------------------------------------------


def test_the_template_asks_for_what_there_is_and_nothing_of_it_is_left(loaded, checkpoint, tmp_path, monkeypatch):
    """Jinja writes nothing for a name that it does not know, so the names are compared."""
    given = {}
    fill = ModelCard.from_template.__func__

    def watched(cls, data, **options):
        given.update(options)
        return fill(cls, data, **options)

    monkeypatch.setattr(ModelCard, "from_template", classmethod(watched))
    cards = render_card(loaded, checkpoint), without_records(loaded, checkpoint, tmp_path)
    asked = meta.find_undeclared_variables(Environment().parse(read_template()))
    assert asked == given.keys() - {"template_str"} and len(asked) > 40
    for card in cards:
        assert "{{" not in card and "}}" not in card
        assert not re.findall(r"<[^!]", re.sub(r"^```.*?^```$", "", card, flags=re.M | re.S))
        assert card.count("```") % 2 == 0


def test_the_template_is_a_card_itself():
    """Its head is the YAML that every card begins with: the file at the top of the repository is a valid card."""
    assert read_template() == TEMPLATE
    data = ModelCard(TEMPLATE).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation") and "diffusion" in data.tags


def test_what_a_record_holds_cannot_break_a_table_or_be_a_tag(loaded, checkpoint):
    changed = record(checkpoint) | {"command": "python x.py --text 'a|b' $HOME `date` <script>\n", "license": "<b>|$x"}
    (checkpoint / "result.json").write_text(json.dumps(changed))
    rows = section(render_card(loaded, checkpoint), "Training").strip().split("\n\n")[0].splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert rows[2].startswith("| License of the weights | &lt;b>") and not any("<script" in row for row in rows)


def test_the_example_in_the_card_runs_in_its_folder(measured):
    code = re.search(r"```python\n(.*?)```", (measured / "README.md").read_text("utf-8"), re.DOTALL)[1]
    ran = run_python(code=code, cwd=str(measured), **ON_THE_CPU)
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_the_sketch_counts_and_names_what_is_below(depth):
    tree = random_tree(64, branching=round(64 ** (1 / depth)), depth=depth, seed=3)
    lines = sketch_tree(tree).splitlines()
    shown = [re.fullmatch(r"(root, the mask: |[│ ]*[├└]── )([\d,]+)(: [\d …]+)?", line) for line in lines]
    assert shown[0][2] == "64" and len(lines) <= 1 + BRANCHES * (BRANCHES + 2) + 1
    for line, match in zip(lines, shown, strict=True):
        if match is None:
            assert re.fullmatch(r"[│ ]*└── and \d+ more", line)
        elif match[3]:  # a node whose tokens are listed: they have an ancestor in common
            tokens = [int(token) for token in re.findall(r"\d+", match[3])]
            level = min(2, depth - 1)
            node = int(tree.ancestors[tokens[0], level])
            assert (tree.ancestors[tokens, level] == node).all() and tokens[0] == int(tree.representative[node])
            assert int(match[2]) == int((tree.ancestors[:, level] == node).sum()) >= len(tokens)


def test_the_sketch_shows_words_where_there_is_a_tokenizer(loaded, checkpoint):
    assert '" the" ' in render_card(loaded, checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    assert '" the" ' not in render_card(loaded, checkpoint)
    special = {0: "```", 1: 'a\n"', 2: "\N{REPLACEMENT CHARACTER}", 3: "<|end|>"}
    assert sketch_tree(VocabularyTree.flat(4), special.get) == r'root, the mask: 4: "```" "a\n\"" "<|end|>" …'


# ---- files ----------------------------------------------------------------------------------------------------


def test_a_readme_of_ones_own_is_kept(loaded, checkpoint):
    own, readme = "# My model\n", checkpoint / "README.md"
    changed = readme.read_text("utf-8").replace("## Intended use", "## What it is for")
    for text in (own, changed.replace(MARK, "")):
        readme.write_text(text, "utf-8")
        save_checkpoint(loaded, checkpoint)
        write_card(loaded, checkpoint)
        assert readme.read_text("utf-8") == text
    readme.write_text(changed, "utf-8")
    save_checkpoint(loaded, checkpoint)
    assert "## Intended use" in readme.read_text("utf-8")


def test_a_model_without_tokenizer_has_a_card_and_one_without_head_has_none(tree, tmp_path):
    """The card counts the parameters of a head and generates: not what a body alone does."""
    save_checkpoint(TreeDiffModel.from_tree(tree, hidden_size=32, num_attention_heads=4), tmp_path / "body")
    save_checkpoint(tiny_model(tree), tmp_path / "model")
    assert not (tmp_path / "body" / "README.md").exists()
    assert "| `num_steps` | `64` |" in (tmp_path / "model" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: edit_record(folder, text="corpus.txt"),
        lambda folder: edit_record(folder, level_losses=None),
        lambda folder: edit_record(folder, license=2),
    ],
    ids=["tokenizer", "text", "level losses", "license"],
)
def test_what_cannot_be_rendered_loses_no_model(loaded, checkpoint, caplog, spoil):
    spoil(checkpoint)
    before = (checkpoint / "README.md").read_text("utf-8")
    (checkpoint / "config.json").unlink()
    save_checkpoint(loaded, checkpoint)
    assert (checkpoint / "config.json").exists() and (checkpoint / "README.md").read_text("utf-8") == before
    with pytest.raises(Exception):  # noqa: B017, PT011 -- whatever it is
        render_card(loaded, checkpoint)
    TreeDiffForDiffusionLM.from_pretrained(checkpoint)


def edit_record(folder, **changes):
    (folder / "result.json").write_text(json.dumps(record(folder) | changes), "utf-8")


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


def test_a_checkpoint_of_a_run_stays_whole_when_its_card_changes(tmp_path):
    tiny_run(tmp_path)
    checkpoint = tmp_path / "checkpoint-0000006"
    facts = json.loads((checkpoint / "run.json").read_text("utf-8"))
    (checkpoint / "README.md").write_text("# Mine\n", "utf-8")
    (checkpoint / "evaluation.json").write_text("{}", "utf-8")
    assert find_damage(checkpoint, facts) == ""
    (checkpoint / "config.json").write_text("", "utf-8")
    assert "config.json has" in find_damage(checkpoint, facts)


@pytest.mark.parametrize("source", ["folder", "hub", "hub, by its own code"])
def test_records_travel_from_wherever_a_model_was_loaded(measured, tmp_path, monkeypatch, source):
    place, options = str(measured), {}
    if source != "folder":
        options = {"trust_remote_code": True} if "code" in source else {}
        place, double = "someone/a-model", HubDouble()
        double.put(place, {file.name: file.read_bytes() for file in measured.iterdir() if file.is_file()})
        with double:
            double.serve_this_process(monkeypatch, tmp_path / "home")
            monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
            save_checkpoint(AutoModel.from_pretrained(place, **options), tmp_path / "again")
    else:
        save_checkpoint(AutoModel.from_pretrained(place), tmp_path / "again")
    again, first = ((folder / "README.md").read_text("utf-8") for folder in (tmp_path / "again", measured))
    assert [section(again, title) for title in MEASURED] == [section(first, title) for title in MEASURED]
    assert "± " in section(again, "Training")


SAVE_WITH_THE_WHEEL = """
import sys
import modeling_treediff
from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.hub import save_checkpoint
print(modeling_treediff.__file__)
model = TreeDiffForDiffusionLM.from_tree(VocabularyTree.flat(8), hidden_size=8, num_attention_heads=2)
save_checkpoint(model, sys.argv[1])
"""


def test_an_installed_wheel_holds_the_template(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "modeling_treediff", source / "modeling_treediff", ignore=no_cache)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "model_card.md"):
        shutil.copy(REPOSITORY / name, source / name)
    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]
    built = run_python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source)
    assert built.returncode == 0, built.stderr
    installed = run_python(*pip, "install", "--no-deps", "--no-index", "--target", site, *tmp_path.glob("*.whl"))
    assert installed.returncode == 0, installed.stderr
    ran = run_python(tmp_path / "m", code=SAVE_WITH_THE_WHEEL, PYTHONPATH=str(site), cwd=str(tmp_path))
    assert ran.returncode == 0 and str(site) in ran.stdout, ran.stderr
    assert MARK in (tmp_path / "m" / "README.md").read_text("utf-8")
    assert (site / "modeling_treediff" / "hub" / "model_card.md").read_text("utf-8") == TEMPLATE

"""The model card: every number has a record of the very weights behind it, and the Hub would take the metadata."""

import json
import math
import re

import pytest
from helpers.cards import MEASURED, numbers, record, section, without_records
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, run_python
from helpers.tiny_run import tiny_run
from huggingface_hub import ModelCard
from jinja2 import Environment, meta

from modeling_treediff import TreeDiffForDiffusionLM, TreeDiffModel
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.hub.card import MARK, read_template, render_card, write_card
from modeling_treediff.training.run.checkpoints import find_damage

TEMPLATE = (REPOSITORY / "model_card.md").read_text(encoding="utf-8")

ON_THE_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def test_tags_of_the_model_join_those_of_the_card(checkpoint):
    model = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    before = ModelCard(render_card(model, checkpoint))
    model.add_model_tags(["poems", "diffusion"])
    after = ModelCard(render_card(model, checkpoint))
    assert "diffusion" in before.data.tags and after.data.tags == [*before.data.tags, "poems"]
    assert after.text == before.text
    assert after.data.to_dict() | {"tags": None} == before.data.to_dict() | {"tags": None}


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


def test_without_records_the_card_has_no_figure_of_a_measurement(loaded, checkpoint, tmp_path):
    """So each comes from a record: no section of theirs is there, and no row without a value in the others."""
    card, bare = render_card(loaded, checkpoint), without_records(loaded, checkpoint, tmp_path)
    for title in (*MEASURED, "Samples", "Training curves"):
        assert section(card, title).strip() and f"# {title}" not in bare
    for title in MEASURED:
        assert len(numbers(section(card, title))) > 10
    assert "perplexity" in section(card, "model") and "perplexity" not in section(bare, "model")
    assert "model-index" not in bare and "license" not in bare.split("\n---\n")[0]
    assert "|  |" not in card.replace("| | |", "") and "|  |" not in bare.replace("| | |", "")


def test_the_card_reads_as_a_page(loaded, checkpoint):
    """What it is, texts, the curve, how to use it, its limits; then what backs them."""
    card, training = render_card(loaded, checkpoint, repository="me/poet"), record(checkpoint)
    titles = re.findall(r"^#+ (.*)", card, re.MULTILINE)
    first = ["poet", "Samples", "Training curves", "How to use", "Limits", "Where it comes from"]
    assert titles[:6] == first and titles[-1] == "Citation"
    assert 'from_pretrained("me/poet", trust_remote_code=True)' in card
    assert [sample["seed"] for sample in training["samples"]] == [0, 1, 2]
    shown = " ".join(section(card, "Samples").split())
    assert all(" ".join(sample["text"].split()) in shown for sample in training["samples"])
    assert ModelCard(card).data.language == training["language"] == "en"


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


def test_the_example_in_the_card_runs_beside_its_folder(measured):
    code = re.search(r"```python\n(.*?)```", (measured / "README.md").read_text("utf-8"), re.DOTALL)[1]
    ran = run_python(code=code, cwd=str(measured.parent), **ON_THE_CPU)
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr


def test_a_readme_of_ones_own_is_kept(loaded, checkpoint):
    own, readme = "# My model\n", checkpoint / "README.md"
    changed = readme.read_text("utf-8").replace("## Limits", "## What it is for")
    for text in (own, changed.replace(MARK, "")):
        readme.write_text(text, "utf-8")
        save_checkpoint(loaded, checkpoint)
        write_card(loaded, checkpoint)
        assert readme.read_text("utf-8") == text
    readme.write_text(changed, "utf-8")
    save_checkpoint(loaded, checkpoint)
    assert "## Limits" in readme.read_text("utf-8")


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


def test_a_checkpoint_of_a_run_stays_whole_when_its_card_changes(tmp_path):
    tiny_run(tmp_path)
    checkpoint = tmp_path / "checkpoint-0000006"
    facts = json.loads((checkpoint / "run.json").read_text("utf-8"))
    (checkpoint / "README.md").write_text("# Mine\n", "utf-8")
    (checkpoint / "evaluation.json").write_text("{}", "utf-8")
    assert find_damage(checkpoint, facts) == ""
    (checkpoint / "config.json").write_text("", "utf-8")
    assert "config.json has" in find_damage(checkpoint, facts)


SAVE_WITH_THE_WHEEL = """
import sys
import modeling_treediff
from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.hub import save_checkpoint
print(modeling_treediff.__file__)
model = TreeDiffForDiffusionLM.from_tree(VocabularyTree.flat(8), hidden_size=8, num_attention_heads=2)
save_checkpoint(model, sys.argv[1])
"""


def test_an_installed_wheel_holds_the_template(site, tmp_path):
    ran = run_python(tmp_path / "m", code=SAVE_WITH_THE_WHEEL, PYTHONPATH=str(site), cwd=str(tmp_path))
    assert ran.returncode == 0 and str(site) in ran.stdout, ran.stderr
    assert MARK in (tmp_path / "m" / "README.md").read_text("utf-8")
    assert (site / "modeling_treediff" / "hub" / "model_card.md").read_text("utf-8") == TEMPLATE

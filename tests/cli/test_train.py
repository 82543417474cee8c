"""Training as people run it: fresh processes, real text, bad input (most of it in this process)."""

import json
import re

import pytest
from helpers.processes import SAMPLE, last_line, run_here, run_python
from safetensors.torch import load_file

from modeling_treediff.text import read_documents

TINY = [
    "--hidden-size",
    "16",
    "--heads",
    "2",
    "--layers",
    "1",
    "--sequence-length",
    "16",
    "--batch-size",
    "4",
    "--warmup-steps",
    "2",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve short documents of the embedded sample, in a file of their own."""
    text = "\n\n".join(document[:2000] for document in read_documents(SAMPLE / "validation.txt.xz") * 2)
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text(text, encoding="utf-8")
    return file


def train(
    corpus,
    output,
    *options,
    launcher=("accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1"),
    sizes=TINY,
):
    """As the README says: accelerate launch --quiet examples/train.py, which is `treediff train`."""
    return run_python(
        *["-m", *launcher, "examples/train.py", "--text", corpus, "--hold-out-every", "5"],
        *["--output", output, *sizes, *options],
        ACCELERATE_USE_CPU="true",
    )


def train_here(text, output, *options, sizes=TINY):
    """The same in this process, without the seconds that a fresh one takes to begin."""
    return run_here(*["train", "--text", text, "--hold-out-every", "5", "--output", output, *sizes, *options])


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    ran = train(corpus, output, "--max-steps", "4", "--validate-every", "2", "--save-every", "2")
    assert ran.returncode == 0, ran.stderr
    return output, ran


def test_training_reports_and_records(trained):
    output, ran = trained
    assert len(re.findall(r"step \d: validation NELBO [\d.]+ \+- [\d.]+ nats/token, perplexity <= ", ran.stdout)) == 2
    assert re.search(r"step 4 of 4: loss [\d.]+, nelbo [\d.]+, tok/s \d+, peak [\d.]+ GiB", ran.stderr)
    assert "\r" not in ran.stderr and "%|" not in ran.stderr  # no bars, nor those of libraries, where nobody watches
    record = json.loads((output / "result.json").read_text())
    assert record["steps"] == 4 and record["tokens_seen"] == 4 * 4 * 16 and record["seed"] == 0
    assert f"validation NELBO {record['nelbo']:.3f}" in ran.stdout
    assert record["versions"]["torch"] and "examples/train.py" in record["command"]
    weights = load_file(output / "model.safetensors")
    trainable = sum(value.numel() for name, value in weights.items() if ".table_" not in name)
    assert sum(record["parameters"].values()) == trainable
    assert json.loads((output / "generation_config.json").read_text())["top_p"] == 0.9


def test_fine_tuning_goes_on_from_a_checkpoint_with_its_tree(trained, corpus, tmp_path):
    """With a learning rate of almost nothing, the model is the one it came from."""
    output, _ = trained
    options = ["--from", output / "checkpoint-0000004", "--max-steps", "1", "--learning-rate", "1e-30"]
    ran = train_here(corpus, tmp_path / "tuned", *options, sizes=[])
    assert ran.returncode == 0, ran.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (output, tmp_path / "tuned"))
    assert all((before[name] == after[name]).all() for name in before)
    record = json.loads((tmp_path / "tuned" / "result.json").read_text())
    assert record["sequence_length"] == 16 and record["hidden_size"] == 16
    for code, clash, message in (
        (2, ["--layers", "3"], "--from brings its own model along: leave out --layers"),
        (1, ["--sequence-length", "17"], "Windows of 17 tokens are longer than the model's 16 positions"),
    ):
        ran = train_here(corpus, tmp_path / "new", "--from", output, *clash, sizes=[])
        assert ran.returncode == code and message in last_line(ran)
    assert not (tmp_path / "new").exists()


def test_a_model_goes_on_in_blocks_of_several_sizes_and_is_used_with_any_of_them(trained, corpus, tmp_path):
    output, _ = trained
    options = ["--from", output, "--max-steps", "2", "--block-size", "4", "--lookahead", "0.5"]
    ran = train_here(corpus, tmp_path / "blocks", *options, "--mixed-block-sizes", "8", "16", sizes=[])
    assert ran.returncode == 0, ran.stderr
    saved = json.loads((tmp_path / "blocks" / "config.json").read_text())
    assert (saved["block_size"], saved["lookahead"]) == (4, 0.5)
    figures = {}
    for size in (None, 4, 16):
        size_options = [] if size is None else ["--block-size", str(size)]
        wrote = run_here("generate", tmp_path / "blocks", "--max-new-tokens", "8", *size_options)
        assert wrote.returncode == 0, wrote.stderr
        record = tmp_path / f"{size}.json"
        measured = run_here("evaluate", tmp_path / "blocks", corpus, "--limit", "2", "--json", record, *size_options)
        assert measured.returncode == 0, measured.stderr
        facts = json.loads(record.read_text())
        assert facts["block_size"] == (size or 4)
        figures[size] = facts["texts"][0]["nelbo"]
    assert figures[None] == figures[4] != figures[16]
    saved = tmp_path / "blocks" / "generation_config.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"block_length": 4, "approximate_cache": True}))
    wrote = run_here("generate", tmp_path / "blocks", "--max-new-tokens", "8", "--block-size", "8")
    assert wrote.returncode == 0, wrote.stderr  # which are settings for a model without blocks
    card = tmp_path / "blocks" / "evaluation.json"
    ran = run_here("evaluate", tmp_path / "blocks", corpus, "--block-size", "16", "--json", card)
    assert ran.returncode == 1 and "shows the model's own blocks" in last_line(ran) and not card.exists()
    ran = train_here(corpus, tmp_path / "new", "--max-steps", "2", "--mixed-block-sizes", "8")
    assert ran.returncode == 1 and "give --block-size, too" in last_line(ran)
    ran = run_here("generate", tmp_path / "blocks", "--block-size", "0")
    assert ran.returncode == 1 and "block_size must be at least 1" in last_line(ran)


def test_what_the_text_is_stands_in_record_and_card(corpus, tmp_path):
    ran = train_here(corpus, tmp_path / "run", "--max-steps", "2", "--text-description", "addresses of <presidents>")
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["text_description"] == "addresses of <presidents>"
    card = (tmp_path / "run" / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if ", trained on addresses of" in line]
    assert "<presidents>" not in line  # which would be a tag
    assert "corpus.txt" in card  # where it comes from


def test_a_model_of_perturbed_nodes_trains_goes_on_and_is_used(corpus, tmp_path):
    ran = train_here(corpus, tmp_path / "new", "--max-steps", "2", "--perturbation", "0.2")
    assert ran.returncode == 0, ran.stderr
    ran = train_here(corpus, tmp_path / "on", "--from", tmp_path / "new", "--max-steps", "2", sizes=[])
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "on" / "config.json").read_text())["perturbation"] == 0.2
    for command in (["generate", "--max-new-tokens", "8"], ["evaluate", corpus, "--limit", "2"]):
        ran = run_here(command[0], tmp_path / "on", *command[1:])
        assert ran.returncode == 0, ran.stderr
    for options, message in (
        (["--perturbation", "1"], "perturbation must be at least 0 and less than 1"),
        (["--perturbation", "0.1", "--tree", "flat"], "nodes between root and tokens"),
        (["--perturbation", "0.1", "--loss-chunk", "8"], "leave out loss_chunk"),
    ):
        ran = train_here(corpus, tmp_path / "refused", "--max-steps", "2", *options)
        assert ran.returncode == 1 and message in last_line(ran)


def test_a_config_file_holds_options_and_names_the_nearest_of_those_it_misspells(corpus, tmp_path):
    file = tmp_path / "config.yaml"
    options = {"max_steps": 2, "learning-rate-schedule": "wsd", "decay-steps": 0, "ema_decay": 0.9, "save-every": 1}
    file.write_text("".join(f"{name}: {value}\n" for name, value in options.items()))
    ran = train_here(corpus, tmp_path / "run", "--config", file)
    assert ran.returncode == 0, ran.stderr
    identity = json.loads((tmp_path / "run" / "checkpoint-0000002" / "run.json").read_text())["identity"]
    assert identity["ema_decay"] == 0.9 and identity["learning_rate_schedule"] == "wsd"
    file.write_text("step: 2\n")
    ran = train_here(corpus, tmp_path / "new", "--config", file)
    assert ran.returncode == 2 and "config.yaml: unknown option --step; the nearest is" in last_line(ran)


def test_two_processes_train_one_model(corpus, tmp_path):
    output = tmp_path / "two"
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = train(corpus, output, "--max-steps", "4", "--validate-every", "2", "--save-every", "2", launcher=launcher)
    assert ran.returncode == 0, ran.stderr
    record = json.loads((output / "result.json").read_text())
    assert record["tokens_seen"] == 2 * 4 * 4 * 16
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 4
    assert ran.stdout.count("step 2: validation NELBO") == 1


def test_a_dry_run_plans_and_writes_nothing(tmp_path):
    ran = run_here("train", *TINY, "--dry-run", "--output", tmp_path / "out")
    assert ran.returncode == 0 and "The largest batch that fits: " in ran.stdout, ran.stderr
    assert not (tmp_path / "out").exists()


def test_flat_tree_trains_by_the_same_command(corpus, tmp_path):
    ran = train_here(corpus, tmp_path / "flat", "--tree", "flat", "--max-steps", "1", "--validation-windows", "4")
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "flat" / "result.json").read_text())["tree"] == "flat"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"Two.\n\nDocuments.", ["--max-steps", "0"], "max_steps must be at least 1"),
        (b"Two.\n\nDocuments.", ["--global-batch-size", "6"], "6 windows is not a multiple of 4"),
        (b"Two.\n\nDocuments.", ["--mixed-precision", "fp16"], "fp16 needs a GPU"),
        (b"", [], "holds no text"),
        ("façade".encode("latin-1"), [], "is not UTF-8: byte 2 is 0xe7"),
        (b"Too short.\n\nVery.", ["--hold-out-every", "2"], "less than one window of 16"),
        (b"Only one document here.", [], "has too few documents to hold out one in 5"),
    ],
    ids=["no steps", "indivisible batch", "precision", "empty", "undecodable", "shorter than a window", "one document"],
)
def test_bad_input_is_refused_and_leaves_no_trace(tmp_path, content, options, message):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    ran = train_here(text, tmp_path / "out", *options)
    assert ran.returncode == (2 if "at least 1" in message else 1) and message in last_line(ran)
    assert last_line(ran).startswith("treediff train: error: ")
    assert not (tmp_path / "out").exists()


def test_a_second_run_does_not_overwrite_the_first(trained, corpus):
    output, _ = trained
    before = (output / "model.safetensors").read_bytes()
    ran = train_here(corpus, output, "--max-steps", "4", "--seed", "1")
    assert ran.returncode == 1 and "--resume" in last_line(ran)
    assert (output / "model.safetensors").read_bytes() == before

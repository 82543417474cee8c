"""Plans as people ask for them: of new models and saved ones, for a device."""

import json

from helpers.models import SMALL_CONFIG
from helpers.processes import SAMPLE, last_line, run_here, run_treediff
from helpers.untraced import untraced
from transformers import GPT2Config

from modeling_treediff import TreeDiffConfig
from modeling_treediff.training import plan_memory
from modeling_treediff.training.memory.tracker import GIBIBYTE


@untraced
def test_a_model_of_gpt2s_size(tmp_path):
    picture, file = tmp_path / "step.png", tmp_path / "plan.json"
    model = ("--tree", "flat", "--vocab-size", 50257, "--hidden-size", 768, "--heads", 12, "--layers", 12)
    run = ("--sequence-length", 512, "--batch-size", 32, "--mixed-precision", "bf16")
    ran = run_here("plan-memory", *model, *run, "--picture", picture, "--json", file)
    assert ran.returncode == 0, ran.stderr
    plan = json.loads(file.read_text())
    config = TreeDiffConfig(vocab_size=50_257, num_hidden_layers=12, hidden_size=768, num_attention_heads=12)
    assert plan["peak_bytes"] == plan_memory(config, 32, 512).peak == sum(plan["parts_bytes"].values())
    assert f"{plan['peak_bytes'] / GIBIBYTE:.3g} GiB" in ran.stdout and "head and logits" in ran.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@untraced
def test_the_batch_for_a_device_and_nonsense():
    ran = run_here("plan-memory", "--gpu", "1GB")
    assert ran.returncode == 0 and "largest batch" in ran.stdout, ran.stderr
    assert run_here("plan-memory", "--tree", SAMPLE, "--gpu", "1GB").stdout == ran.stdout
    ran = run_here("plan-memory", "--gpu", "lots")
    assert ran.returncode == 2 and "such as 24GB" in last_line(ran)


def test_a_model_of_the_hub_by_its_config_alone(tmp_path):
    repository = tmp_path / "models--someone--model"  # a cache that has nothing but the config
    SMALL_CONFIG.save_pretrained(repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    options = ("--batch-size", "8", "--recompute-mlp", "2", "--json", tmp_path / "plan")
    ran = run_treediff("plan-memory", "--from", "someone/model", *options, HF_HUB_CACHE=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    expected = plan_memory(SMALL_CONFIG, 8, 128, precision="fp32", recompute_mlp=2)
    assert json.loads((tmp_path / "plan").read_text()) == expected.summary()


def test_other_models_and_other_sizes_are_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    ran = run_here("plan-memory", "--from", tmp_path)
    assert ran.returncode == 1 and "is a gpt2 model, not one of treediff" in last_line(ran)
    ran = run_here("plan-memory", "--from", tmp_path, "--layers", "2")
    assert ran.returncode == 2 and "brings its own model along: leave out --layers" in last_line(ran)


def test_ready_trees_that_an_installed_package_lacks_are_located(tmp_path):
    ran = run_here("plan-memory", "--tree", "tree_artifacts/no-such-tree")
    assert ran.returncode == 1 and "lie in tree_artifacts/ of a clone" in last_line(ran)

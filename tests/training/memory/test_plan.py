"""The plan of a step's memory: what the design promises of trees, and what must hold of any plan."""

import json
import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from helpers.models import SMALL_CONFIG, tiny_model
from helpers.processes import REPOSITORY, run_python
from helpers.untraced import untraced

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.budget import budget_config, count_parameters
from modeling_treediff.training.memory import make_lean
from modeling_treediff.training.memory import plan as memory_plan
from modeling_treediff.training.memory.fake_step import TrainingStep, norms_as_on_cuda
from modeling_treediff.training.memory.ledger import BLOCK
from modeling_treediff.training.memory.plan import USABLE, largest_batch, plan_memory, plan_step
from modeling_treediff.training.memory.tracker import readable

REFERENCE = {"hidden_size": 768, "num_attention_heads": 12}


def reference_flat():
    """MDLM over GPT-2's vocabulary, 12 layers."""
    return TreeDiffConfig(vocab_size=50_257, num_hidden_layers=12, **REFERENCE)


def reference_tree():
    """As many parameters over a tree of fan-out 225 and depth 2: 6 layers, 1.5 times as wide."""
    sizes = {"vocab_size": 50_257, "tree_depth": 2, "max_branching": 225, "num_nodes": 50_257 + 225}
    shape = SimpleNamespace(**sizes, sha256=None, metadata={})
    budget = sum(count_parameters(reference_flat()).values())
    return budget_config(shape, budget, **REFERENCE | {"hidden_size": 1152})


@cache
def reference_peak(tree, batch_size=32, **settings):
    config = reference_tree() if tree else reference_flat()
    return plan_memory(config, batch_size, 512, **settings).peak


def test_the_reference_models_have_equal_budgets():
    flat, tree = (sum(count_parameters(config).values()) for config in (reference_flat(), reference_tree()))
    assert abs(tree - flat) <= 0.01 * flat and reference_tree().num_hidden_layers == 6


@untraced
def test_the_tree_takes_two_fifths_of_the_peak_with_free_savings_alone():
    """B=32, L=512, d=768, V=50,257, bf16, AdamW, the same lean backbone on both sides."""
    assert reference_peak(True) <= 0.40 * reference_peak(False)


@untraced
def test_the_recorded_figures_are_what_is_planned():
    rows = json.loads((REPOSITORY / "benchmarks" / "results" / "memory.json").read_text())["rows"]
    at_reference = {"batch_size": 32, "vocab_size": 50_257, "hidden_size": 768}
    rows = [row for row in rows if row.items() >= at_reference.items() and "budget" in row["matched"]]
    recorded = {(row["contender"], row["variant"]): row["peak_bytes"] for row in rows}
    settings = {"lean": {}, "recompute": {"recompute_mlp": 5}, "plain": {"lean": False}}
    for variant, options in settings.items():
        assert reference_peak(True, **options) == pytest.approx(recorded["tree", variant], rel=0.02)
    assert reference_peak(False, loss_chunk=1024) == pytest.approx(recorded["mdlm-chunked", "lean"], rel=0.02)
    assert recorded["tree", "plain"] > 1.4 * recorded["tree", "lean"]


def test_recomputed_mlps_take_it_to_a_third():
    """Recomputed in five of six layers, on both sides."""
    assert reference_peak(True, recompute_mlp=5) <= 0.35 * reference_peak(False, recompute_mlp=10)


def test_the_tree_takes_less_than_the_flat_model_with_a_chunked_cross_entropy():
    """Which computes its head twice."""
    assert reference_peak(True) <= 0.95 * reference_peak(False, loss_chunk=1024)


def test_the_parts_sum_to_the_peak_and_the_step_ends_as_it_began():
    plan = plan_memory(SMALL_CONFIG, 8, 64)
    assert sum(plan.parts.values()) == plan.peak == plan.total.max()
    assert [name for name, _ in plan.phases] == ["forward", "backward", "optimizer"]
    assert plan.timeline["activations"][-1] == plan.timeline["gradients"][-1] == 0
    assert plan.peak_phase == "backward"


@pytest.mark.parametrize("fields", [{}, {"perturbation": 0.1}, {"lookahead": 0.5}], ids=str)
def test_torchs_own_tracker_sees_the_same_peak(fields):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    config = TreeDiffConfig(**SMALL_CONFIG.to_dict() | fields)
    with FakeTensorMode(), norms_as_on_cuda():
        model = TreeDiffForDiffusionLM(config).train()
        model.model.tree_tables.verified = True  # fake tensors have no values to look at
        make_lean(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        ids, times = torch.zeros(8, 64, dtype=torch.long), torch.ones(8)
        for _ in range(2):  # the first step makes the optimizer's state
            with tracker:
                model(ids, labels=ids, timesteps=times).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            tracker.reset_mod_stats()
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert plan_memory(config, 8, 64, precision="fp32").peak == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize(("batch", "length"), [(1, 128), (2, 32), (64, 128)])
def test_what_is_printed_agrees_with_the_picture(batch, length):
    """What is nearly nothing at the peak, as the head's of a small batch, was more before: both are there."""
    plan = plan_memory(SMALL_CONFIG, batch, length)
    rows = [re.split(r"  +", line) for line in str(plan).splitlines()[1:]]
    assert rows[0] == ["memory", "at the peak", "share", "at most"]
    assert rows[-1] == ["all", readable(plan.peak), "100%", readable(plan.peak)]
    expected = [[name, readable(plan.parts[name]), readable(course.max())] for name, course in plan.timeline.items()]
    assert [[name, size, most] for name, size, _, most in rows[1:-1]] == expected


@untraced
def test_every_way_to_save_memory_saves_it():
    flat = TreeDiffConfig(vocab_size=5000, hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
    plan = plan_memory(flat, 16, 64)
    chunked = plan_memory(flat, 16, 64, loss_chunk=128)
    assert chunked.parts["head and logits"] < 0.4 * plan.parts["head and logits"]
    assert plan.peak < plan_memory(flat, 16, 64, lean=False).peak
    assert plan_memory(flat, 16, 64, gradient_checkpointing=True).peak < plan.peak
    recomputed = plan_memory(SMALL_CONFIG, 16, 64, recompute_mlp=3)
    assert (
        recomputed.peak
        < plan_memory(SMALL_CONFIG, 16, 64).peak
        < plan_memory(SMALL_CONFIG, 16, 64, precision="fp32").peak
    )
    assert plan_memory(SMALL_CONFIG, 16, 64, precision="fp16").peak == plan_memory(SMALL_CONFIG, 16, 64).peak


def test_accumulation_adds_the_gradients_and_no_more():
    once, twice, often = (plan_memory(SMALL_CONFIG, 16, 64, accumulation=count) for count in (1, 2, 7))
    gradients = once.timeline["gradients"].max()
    assert twice.peak == often.peak
    # Less than all of them: at the peak of a single batch those of the head are there already.
    head = 4 * count_parameters(SMALL_CONFIG)["head"]
    assert 0.95 * (gradients - head) <= twice.peak - once.peak <= gradients


def test_processes_divide_what_is_sharded():
    alone = plan_memory(SMALL_CONFIG, 8, 64, ema=True)
    parallel = plan_memory(SMALL_CONFIG, 8, 64, ema=True, processes=4)
    sharded = plan_memory(SMALL_CONFIG, 8, 64, ema=True, processes=4, sharded=True)
    parameters = 4 * sum(count_parameters(SMALL_CONFIG).values())
    assert parallel.peak == alone.peak + parameters  # the buckets
    assert sharded.peak < alone.peak
    for name in ("EMA", "optimizer state"):
        assert sharded.timeline[name].max() == pytest.approx(alone.timeline[name].max() / 4, abs=BLOCK)
    assert (sharded.timeline["activations"] == alone.timeline["activations"]).all()
    assert 0 < sharded.timeline["exchange"].max() < parameters and sharded.timeline["exchange"][-1] == 0


@untraced
@pytest.mark.parametrize("batch", [1, 40])
def test_the_largest_batch_fits_and_the_next_does_not(batch):
    step = TrainingStep(SMALL_CONFIG, 1, 64)
    memory = int(plan_memory(SMALL_CONFIG, batch, 64).peak / USABLE) + 1
    found = largest_batch(step, memory)
    assert found >= batch
    assert plan_step(replace(step, batch_size=found)).peak <= USABLE * memory
    assert plan_step(replace(step, batch_size=found + 1)).peak > USABLE * memory
    assert largest_batch(step, 2**20) == 0


def test_the_largest_batch_is_found_in_a_few_plans(monkeypatch):
    """Also where the optimizer makes the peak of small batches, so that these say nothing about large ones."""
    count, plan = [], memory_plan.plan_step
    monkeypatch.setattr(memory_plan, "plan_step", lambda step: count.append(step) or plan(step))
    flat = TreeDiffConfig(vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
    step = TrainingStep(flat, 1, 2)
    assert plan_memory(flat, 1, 2).peak_phase == "optimizer"
    memory = int(plan_memory(flat, 777, 2).peak / USABLE) + 1
    count.clear()
    assert 777 <= largest_batch(step, memory) <= 780 and len(count) <= 20


def test_advice_names_options_that_do_fit():
    plan = plan_memory(SMALL_CONFIG, 6, 64, accumulation=2)
    memory = int(0.75 * plan.peak / USABLE)
    advice = plan.advice(memory)
    ways = advice.split("The same step in less: ")[1].rstrip(".").split("; or ")
    assert len(ways) == 3 and "--recompute-mlp 3" in ways[1] and "--gradient-checkpointing" in ways[2]
    words = ways[0].split()
    batch, accumulation = int(words[1]), int(words[3])
    assert batch * accumulation == 12
    assert plan_memory(SMALL_CONFIG, batch, 64, accumulation=accumulation).peak <= USABLE * memory
    assert "it fits" in plan.advice(2 * plan.peak)
    assert "no batch fits" in plan.advice(2**20)


ESTIMATE = """
import json, sys
from types import SimpleNamespace
sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
from accelerate.commands import estimate
folder = sys.argv[1]
known = SimpleNamespace(library_name="transformers", config=json.load(open(folder + "/config.json")))
estimate.model_info = lambda repo, token=None: known  # what the Hub tells of a repository; it has the code beside it
options = ["--trust_remote_code", "--dtypes", "float32"]
(row,) = estimate.gather_data(estimate.estimate_command_parser().parse_args([folder, *options]))
print(row[2])
"""


def test_accelerate_estimates_the_size_of_what_loads_by_remote_code(tmp_path, model):
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()  # nor does it read any weights
    ran = run_python(tmp_path, code=ESTIMATE, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    tensors = [*model.parameters(), *model.buffers()]
    assert int(ran.stdout.split()[-1]) == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_is_within_a_tenth_of_what_cuda_allocates(depth, checkpointing):
    tree = VocabularyTree.flat(8192) if depth == 1 else random_tree(8192, 91, 2)
    fields = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "max_position_embeddings": 256}
    model = tiny_model(tree, **fields).cuda().train()
    make_lean(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = corrupt(torch.zeros(16, 256, dtype=torch.long, device="cuda"), model.tree, model.schedule)
    for step in range(3):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    plan = plan_memory(model.config, 16, 256, gradient_checkpointing=checkpointing)
    assert plan.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)

"""Models train under transformers' Trainer, and with PEFT's adapters, as under our own loop."""

import json
import math
import multiprocessing
import os
import shutil
import socket

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from helpers.models import BACKBONE, tiny_model
from helpers.processes import SAMPLE, run_python
from helpers.tiny_run import equal
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from modeling_treediff import TreeDiffForDiffusionLM, TreeDiffForMaskedLM, VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import NODE_EMBEDDINGS
from modeling_treediff.training import DiffusionCollator
from modeling_treediff.training.data.options import TRAINING_SAMPLING_EPS


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one precision per process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def windows():
    """Eight windows, over and over: there is something to learn. Positions fix the noise of each."""
    rows = torch.randint(0, 100, (8, 16), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": rows.repeat(4, 1).tolist(), "position": list(range(32))})


def trainer(model, folder, windows, **settings):
    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1} | settings
    arguments = TrainingArguments(str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **settings)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    collator = DiffusionCollator(base.tree, base.schedule)
    return Trainer(model, arguments, train_dataset=windows, eval_dataset=windows, data_collator=collator)


def losses(trained):
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


def batch_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 100, (4, 16), generator=generator)
    return vars(corrupt(tokens, model.tree, model.schedule, generator=generator))


def test_training_learns_what_is_there_to_learn_and_evaluation_sees_it(tmp_path, model):
    """One window, over and over: the bound falls from log 100 to the little that is open while all is masked."""
    rows = [{"input_ids": list(range(0, 96, 6)), "position": position} for position in range(32)]
    trained = trainer(model, tmp_path, Dataset.from_list(rows), max_steps=60, save_strategy="no")
    trained.args.remove_unused_columns = False  # or the same positions would not have the same noise again
    before = trained.evaluate()["eval_loss"]
    batches = [trained.data_collator(rows[start : start + 8]) for start in range(0, 32, 8)]
    assert before == pytest.approx(sum(model(**batch).loss.item() for batch in batches) / 4, rel=1e-4)
    trained.train()
    assert before > 4.6 and trained.evaluate()["eval_loss"] < 2


def test_predictions_are_the_logits(tmp_path, model, windows):
    predicted = trainer(model, tmp_path, windows).predict(windows)
    assert predicted.predictions.shape == (32, 16, 5) and predicted.label_ids.shape == (32, 16)
    assert math.isfinite(predicted.metrics["test_loss"])


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_is_one_on_the_mean_gradient_of_its_passes(tmp_path, tree, windows, accumulation):
    """Plain gradient descent, written out: the loss of a batch is the model's own, whatever the accumulation."""
    settings = {"gradient_accumulation_steps": accumulation, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 1}
    trained = trainer(tiny_model(tree), tmp_path, windows, lr_scheduler_type="constant", **settings)
    batches, own = [], trained.data_collator
    trained.data_collator = lambda features: batches.append(own(features)) or batches[-1]
    trained.train()
    model = tiny_model(tree).train()
    loss = torch.stack([model(**batch).loss for batch in batches[:accumulation]]).mean()
    loss.backward()
    assert losses(trained) == pytest.approx([loss.item()], rel=1e-4)
    for own, other in zip(model.parameters(), trained.model.parameters(), strict=True):
        torch.testing.assert_close(other, own - 1e-2 * own.grad)


def test_resuming_from_its_checkpoint_is_bit_identical(tmp_path, tree, windows):
    """With noise that belongs to the window; what the collator draws from torch's generator is drawn anew."""
    settings = {"save_steps": 3, "remove_unused_columns": False}
    whole = trainer(tiny_model(tree), tmp_path, windows, **settings)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = trainer(tiny_model(tree, seed=1), tmp_path, windows, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert equal(whole.model.state_dict(), resumed.model.state_dict()) and losses(whole) == losses(resumed)
    saved = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "checkpoint-6")
    assert equal(saved.state_dict(), whole.model.state_dict())


def test_mixed_precision_is_close_to_fp32(tmp_path, tree, windows):
    runs = []
    for low in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        runs.append(trainer(tiny_model(tree), tmp_path, windows, bf16=low, save_strategy="no"))
        runs[-1].train()
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=0.02) and losses(runs[0]) != losses(runs[1])
    assert {value.dtype for value in runs[1].model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", [TreeDiffForDiffusionLM, TreeDiffForMaskedLM])
@pytest.mark.parametrize("depth", [1, 3])
def test_losses_that_are_not_the_models_own_are_refused(tmp_path, windows, kind, depth):
    """Label smoothing and a loss function take the labels away: logits of children are no distribution over tokens."""
    tree = VocabularyTree.flat(100) if depth == 1 else random_tree(100, 5, depth)
    smoothed = trainer(tiny_model(tree, kind), tmp_path, windows, label_smoothing_factor=0.1)
    replaced = trainer(tiny_model(tree, kind), tmp_path, windows)
    replaced.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs["logits"].mean()
    for run in (smoothed.train, smoothed.evaluate, replaced.train):
        with pytest.raises(ValueError, match="leave out label_smoothing_factor and compute_loss_func"):
            run()


@pytest.mark.parametrize("node_embedding", NODE_EMBEDDINGS)
def test_noise_of_neftune_is_as_large_as_in_other_models(tmp_path, tree, windows, node_embedding):
    """Uniform in +-alpha / sqrt(T E) at each number of a token's embedding, so alpha^2 / (3 T E) is its variance."""
    model, seen = tiny_model(tree, node_embedding=node_embedding, hidden_size=64), []
    settings = {"learning_rate": 0.0, "per_device_train_batch_size": 32, "remove_unused_columns": False}
    trained = trainer(model, tmp_path, windows, neftune_noise_alpha=5.0, save_strategy="no", **settings)
    nodes = model.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embeddings = model.model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    trained.train()
    nodes.remove()
    model.eval()(seen[0])
    embeddings.remove()
    noise = (seen[1] - seen[-1])[seen[0] < tree.vocab_size]
    variance = 5.0**2 / (3 * 16 * 64)
    assert noise.var().item() == pytest.approx(variance, rel=0.05) and noise.numel() > 5000


def times_of_a_process(rank, folder, workers, windows):
    """What a process of two draws under the Trainer, after it has set the seed."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ[name] = str(value)
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    times = []

    class Recorded(Trainer):
        def training_step(self, model, inputs, *more):
            times.append(inputs["timesteps"])
            return super().training_step(model, inputs, *more)

    model = tiny_model(random_tree(100, 5, 3))
    arguments = TrainingArguments(
        str(folder / str(rank)), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=2, save_strategy="no",
        per_device_train_batch_size=16, dataloader_num_workers=workers,
    )  # fmt: skip
    Recorded(
        model, arguments, train_dataset=windows, data_collator=DiffusionCollator(model.tree, model.schedule)
    ).train()
    torch.save(torch.stack(times), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_draw_different_times_that_are_spread_as_those_of_one(tmp_path, windows, workers):
    """Without workers their generators are equal; the times of a step leave no gap that 32 of one process would not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    context = multiprocessing.get_context("fork")
    both = [
        context.Process(target=times_of_a_process, args=(rank, tmp_path, workers, windows.remove_columns("position")))
        for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for step in range(2):
        together = torch.cat([first[step], second[step]]).sort().values
        assert len(together.unique()) == 32
        if workers == 0:  # with workers the Trainer gives every process a seed of its own
            uniform = (together - TRAINING_SAMPLING_EPS) / (1 - TRAINING_SAMPLING_EPS)
            assert uniform.diff(append=uniform[:1] + 1).max() <= (1 + 2 / 5**0.5) / 32 + 1e-6
    assert not torch.equal(first[0], first[1])


@pytest.fixture
def adapted(model):
    def make(task_type=None, modules_to_save=None):
        config = LoraConfig(task_type=task_type, r=4, target_modules=BACKBONE, modules_to_save=modules_to_save)
        torch.manual_seed(0)
        return get_peft_model(model, config)

    return make


@pytest.mark.parametrize("head", ["child", "node", "leaf"])
@pytest.mark.parametrize("task_type", [None, TaskType.CAUSAL_LM])
@pytest.mark.parametrize("modules_to_save", [None, ["head"]])
def test_training_changes_adapters_alone(tree, head, task_type, modules_to_save):
    """All of them, and nothing else; and the head where it is to be saved."""
    config = LoraConfig(task_type=task_type, r=4, target_modules=BACKBONE, modules_to_save=modules_to_save)
    base = tiny_model(tree, head=head)
    model = get_peft_model(base, config).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    for seed in range(2):  # one of an adapter's two matrices starts at zero, and so does the other's gradient
        model(**batch_of(base, seed)).loss.backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert changed == expected and len(expected) >= 2 * len(BACKBONE) * 2


@pytest.mark.parametrize("task_type", [None, TaskType.CAUSAL_LM])
def test_bound_and_text_go_through_the_adapter(model, adapted, task_type):
    """They are those of the merged model, and of no adapter where it is off."""
    tokens, generator = batch_of(model)["labels"], torch.Generator()

    def measured(some):
        bound = some.nelbo(tokens, num_samples=3, generator=generator.manual_seed(0)).value
        return bound, some.generate(max_new_tokens=8, num_steps=8, generator=generator.manual_seed(0)).tolist()

    bare = measured(model)
    wrapped = adapted(task_type, ["head"])
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    bound, text = measured(wrapped)
    with wrapped.disable_adapter():
        assert measured(wrapped) == bare
    assert bound != bare[0]
    merged = wrapped.merge_and_unload()
    assert type(merged) is TreeDiffForDiffusionLM and merged.tree.sha256 == merged.config.tree_sha256
    assert measured(merged) == (pytest.approx(bound, rel=1e-5), text)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_trains_and_resumes_adapters(tmp_path, tree, windows, checkpointing):
    def wrapped():
        torch.manual_seed(0)
        return get_peft_model(tiny_model(tree), LoraConfig(r=4, target_modules=BACKBONE))

    settings = {"save_steps": 3, "remove_unused_columns": False, "gradient_checkpointing": checkpointing}
    whole = trainer(wrapped(), tmp_path, windows, **settings)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = trainer(wrapped(), tmp_path, windows, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert losses(whole) == losses(resumed) and equal(whole.model.state_dict(), resumed.model.state_dict())
    started = wrapped().state_dict()
    changed = {name for name, value in whole.model.state_dict().items() if not torch.equal(value, started[name])}
    assert changed == {name for name in started if "lora_" in name}


# ---- the example ----------------------------------------------------------------------------------------------------

LOAD_ELSEWHERE = """
import sys, torch
sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
from transformers import AutoModel, AutoTokenizer
from peft import PeftModel
folder, adapter = sys.argv[1:]
nodes = torch.full((1, 8), 8192)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
print(AutoTokenizer.from_pretrained(folder, trust_remote_code=True).mask_token_id)
with torch.no_grad():
    plain = base(nodes).logits
    model = PeftModel.from_pretrained(base, adapter)
    first = model(nodes).logits
    second = AutoModel.from_pretrained(adapter, trust_remote_code=True)(nodes).logits
    merged = model.merge_and_unload()(nodes).logits
print(not torch.equal(first, plain), torch.equal(first, second), torch.allclose(first, merged, atol=1e-5))
"""


def example(output, *options):
    ran = run_python(
        *["examples/train_with_trainer.py", "--output_dir", output, "--report_to", "none", "--use_cpu", "true"],
        *["--max_steps", "4", "--per_device_train_batch_size", "4", "--learning_rate", "0.01", *options],
    )
    assert ran.returncode == 0, ran.stderr
    evaluated = json.loads((output / "eval_results.json").read_text())["eval_loss"]
    assert f"held-out NELBO {evaluated:.3f} nats/token" in ran.stdout
    return evaluated


def test_the_example_trains_and_adapts_and_what_it_saves_loads_elsewhere(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"The state of the Union is {word}. " * 40 for word in ("strong", "new", "old")))
    text = ("--text", str(corpus), "--hold_out_every", "3")
    new = ("--layers", "1", "--hidden_size", "16", "--heads", "2", "--sequence_length", "16", "--tree", str(SAMPLE))
    fresh = example(tmp_path / "model", *text, *new)
    adapted = example(tmp_path / "adapter", *text, "--model", str(tmp_path / "model"), "--lora_rank", "4")
    assert fresh < 9.02 and adapted < fresh  # log 8192 = 9.01
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(names) == 2 * len(BACKBONE) and all("lora_" in name for name in names)
    loaded = run_python(tmp_path / "model", tmp_path / "adapter", code=LOAD_ELSEWHERE, cwd=tmp_path)
    assert loaded.stdout.split("\n")[:2] == ["8192", "True True True"], loaded.stderr

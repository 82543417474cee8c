"""One process, two in parallel (DDP) and two that share the weights (FSDP2) train the same model; here on the CPU."""

import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from helpers import distributed_worker
from helpers.launching import CONFIGS, environment_of, launcher_arguments
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, run_python

from modeling_treediff.configuration_treediff import HEADS, NODE_EMBEDDINGS
from modeling_treediff.training.run.distributed import configure_sharding

LOAD_ELSEWHERE = """
import sys
sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, model.config.tree_sha256 == model.tree.sha256, model.generate(max_new_tokens=4).shape[1])
"""


def launch(processes: int, *runs: dict) -> None:
    for run in runs:
        Path(run["folder"]).mkdir()
    ran = run_python(
        *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)],
        *[REPOSITORY / "tests" / "helpers" / "distributed_worker.py", json.dumps(runs)],
        CUDA_VISIBLE_DEVICES="",
    )
    assert ran.returncode == 0, ran.stderr


def launch_on_two_machines(run: dict) -> None:
    """As ddp.yaml says, for two machines with a process each that are both this one."""
    Path(run["folder"]).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def machine(rank: int) -> subprocess.CompletedProcess:
        return run_python(
            *["-m", "accelerate.commands.launch", "--config_file", CONFIGS / "ddp.yaml", "--num_processes", "2"],
            *["--num_machines", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"],
            *[
                "--main_process_port",
                str(port),
                REPOSITORY / "tests" / "helpers" / "distributed_worker.py",
                json.dumps([run]),
            ],
            ACCELERATE_USE_CPU="true",
        )

    with ThreadPoolExecutor() as pool:
        for ran in pool.map(machine, (0, 1)):
            assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All runs by name; few launches, since starting a process takes longer than all that it does here."""
    home = tmp_path_factory.mktemp("runs")
    sharding = environment_of("fsdp2.yaml")

    def named(name, **options):
        return {"folder": str(home / name)} | options

    for name, options in (("alone", {}), ("alone, blocks", {"block_size": 5})):
        (home / name).mkdir()
        distributed_worker.run(str(home / name), **options)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    launch(
        2,
        named("parallel"),
        named("parallel, blocks", block_size=5),
        named("sharded, blocks", environment=sharding, block_size=5),
        named("parallel bf16", precision="bf16"),
        named("sharded", environment=sharding),
        named("sharded bf16", environment=sharding, precision="bf16"),
        named("sharded, resumed", environment=sharding, resume=str(home / "sharded")),
    )
    launch(1, named("sharded, resumed by one", environment=sharding, resume=str(home / "sharded")))
    launch_on_two_machines(named("two machines"))
    return {path.name: torch.load(path / "result.pt") | {"folder": path} for path in home.iterdir()}


def same(first, second, steps=slice(None), **tolerance):
    """All that was measured in these steps is the same; so are the final weights."""
    for name in ("losses", "norms", "measured"):
        torch.testing.assert_close(first[name], second[name][steps], **tolerance)
    torch.testing.assert_close(first["weights"], second["weights"], **tolerance)


@pytest.mark.parametrize("name", ["parallel", "two machines", "sharded", "parallel, blocks", "sharded, blocks"])
def test_two_processes_take_the_steps_of_one_with_the_same_global_batch(results, name):
    """Losses, gradient norms, bounds and texts under averaged weights after each step, and the weights at the end."""
    assert results[name]["kind"] == ("FSDP" if name.startswith("sharded") else "MULTI_CPU")
    assert len(results[name]["losses"]) == 4
    same(results[name], results["alone, blocks" if "blocks" in name else "alone"], rtol=1e-5, atol=1e-5)


def test_a_sharded_run_resumes_as_if_it_had_not_stopped(results):
    same(results["sharded, resumed"], results["sharded"], slice(2, None), rtol=0, atol=0)


def test_a_sharded_run_resumes_with_another_number_of_processes(results):
    same(results["sharded, resumed by one"], results["sharded"], slice(2, None), rtol=1e-5, atol=1e-5)


def test_sharding_keeps_times_loss_and_master_weights_in_fp32(results):
    """What bf16 changes is as little as without sharding."""
    full, low = results["alone"], results["sharded bf16"]
    assert {value.dtype for value in low["weights"].values()} == {torch.float32, torch.int64}
    assert low["losses"] != full["losses"]
    for name in ("parallel bf16", "sharded bf16"):
        assert results[name]["losses"] == pytest.approx(full["losses"], rel=0.01)


def test_a_sharded_model_is_saved_as_any_other(results):
    folder = results["sharded"]["folder"] / "model"
    shipped, expected = (
        {path.name for path in place.glob("*.py")} for place in (folder, results["alone"]["folder"] / "model")
    )
    assert shipped == expected and "modeling_treediff.py" in shipped
    loaded = run_python(folder, code=LOAD_ELSEWHERE, cwd=folder)
    assert loaded.stdout.split("\n")[0] == "TreeDiffForDiffusionLM True 4", loaded.stderr
    config = json.loads((folder / "config.json").read_text())
    assert config == json.loads((results["alone"]["folder"] / "model" / "config.json").read_text())


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.iterdir()))
def test_accelerate_knows_every_key_of_the_config_files(config):
    """Its own parser refuses unknown names of the first level; of the second they must be options of the launcher."""
    known = vars(launch_command_parser().parse_args(["x"]))
    loaded = load_config_from_file(str(CONFIGS / config))
    assert loaded.mixed_precision == "bf16"
    assert loaded.fsdp_config.keys() <= known.keys()
    assert not any((loaded.deepspeed_config, loaded.megatron_lm_config, loaded.parallelism_config))
    arguments = launcher_arguments(config)
    assert (arguments.multi_gpu, arguments.use_fsdp) == (config == "ddp.yaml", config == "fsdp2.yaml")


def fake_accelerator(kind, precision="bf16", **plugin):
    plugin = SimpleNamespace(**({"fsdp_version": 2, "cpu_ram_efficient_loading": False} | plugin))
    state = SimpleNamespace(fsdp_plugin=plugin)
    return SimpleNamespace(distributed_type=kind, mixed_precision=precision, state=state)


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        (fake_accelerator(DistributedType.DEEPSPEED), "DEEPSPEED is not supported: shard with .*fsdp2.yaml"),
        (fake_accelerator(DistributedType.FSDP, fsdp_version=1), "set fsdp_version to 2"),
        (fake_accelerator(DistributedType.FSDP, cpu_ram_efficient_loading=True), "set it to false"),
        (fake_accelerator(DistributedType.FSDP, "fp16"), "not fp16"),
    ],
)
def test_sharding_that_does_not_work_is_refused(accelerator, message):
    with pytest.raises(ValueError, match=message):
        configure_sharding(accelerator)


def test_sharding_by_an_accelerate_that_loses_the_optimizer_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.12.0")
    with pytest.raises(ValueError, match="needs accelerate >= 1.13"):
        configure_sharding(fake_accelerator(DistributedType.FSDP))


@pytest.mark.parametrize("node_embedding", NODE_EMBEDDINGS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_every_parameter_has_a_gradient_whatever_the_batch(head, node_embedding, depth):
    """DDP waits for all of them: none may be left out where no position stands at some level, or all are leaves."""
    tree = distributed_worker.TREE
    model = tiny_model(tree, head=head, node_embedding=node_embedding).train()
    labels = torch.randint(0, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    input_ids = tree.ancestors[labels, depth]
    model(input_ids, labels=labels, timesteps=torch.tensor([0.4, 0.9])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

"""What `accelerate launch` sets for its processes."""

from argparse import Namespace

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from helpers.processes import REPOSITORY

CONFIGS = REPOSITORY / "examples" / "accelerate_configs"


def launcher_arguments(config: str) -> Namespace:
    """What `accelerate launch --config_file` understands."""
    line = ["--config_file", str(CONFIGS / config), "--num_processes", "1" if config == "one_gpu.yaml" else "2", "x"]
    return _validate_launch_command(launch_command_parser().parse_args(line))[0]


def environment_of(config: str) -> dict[str, str]:
    """What it sets for the processes."""
    environment = prepare_multi_gpu_env(launcher_arguments(config))
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_USE_FSDP", "FSDP_"))}

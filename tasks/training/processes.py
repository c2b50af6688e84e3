"""A job and this machine in, the command that starts its training out: the worker alone, or `accelerate launch`.

A training over several machines is started by the step on the first; on each other machine, with NODE_RANK counted on,
by `python -P -m tasks.training.processes job.json`. They share the job's folder, and only the first process writes in
it.
"""

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from tasks.errors import InvalidRecipe
from tasks.project import shipped
from tasks.recipe.methods import AdaptionPromptMethod, Method, SoftPromptMethod
from tasks.recipe.stages import ComputeRecipe, Strategy
from tasks.steps.child_environment import child_environment
from tasks.training.job import TrainingJob

WORKER = "tasks.training.worker"
DEPLOYMENTS = shipped("deployments")
SHUTDOWN_SECONDS = 45
KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""For glibc, which by default gives large tensors back to the system and takes their pages anew: some five per cent of
a training's time on a processor, for five per cent more memory."""
ADDRESS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def launched(compute: ComputeRecipe) -> bool:
    """Whether `accelerate launch` stands between the step and the worker."""
    return compute.processes > 1


def check(compute: ComputeRecipe, method: Method, variables: Mapping[str, str] | None = None) -> None:
    """Refuse what cannot be started here. Raises InvalidRecipe, before anything is spent."""
    if not launched(compute):
        return
    strategy, here = compute.strategy, compute.processes // compute.machines
    gpus = count_gpus()
    if gpus and here > gpus:
        raise InvalidRecipe(
            f"compute.processes: {here} on this machine, which has {gpus} GPU{'s' * (gpus > 1)}; each needs one."
        )
    if strategy in (Strategy.zero2, Strategy.zero3) and find_spec("deepspeed") is None:
        raise InvalidRecipe(
            f"compute.strategy {strategy.value} needs the package deepspeed, which is not installed: "
            "pip install -c constraints.txt -e '.[deepspeed]' in the project's folder, or use fsdp2, which shares out "
            "what zero3 does."
        )
    if strategy is not Strategy.replicated and isinstance(method, SoftPromptMethod | AdaptionPromptMethod):
        raise InvalidRecipe(
            f"compute.strategy {strategy.value}: {method.type} has too few trainable parameters to shard, and "
            "reads its prompt beside the model's own forward pass; use replicated."
        )
    known = os.environ if variables is None else variables
    missing = [name for name in ADDRESS if not known.get(name)]
    if compute.machines > 1 and missing:
        raise InvalidRecipe(
            f"compute.machines {compute.machines}: {', '.join(missing)} not set in the environment; all machines need "
            "the first one's address and a free port there, and their own number from 0."
        )


def count_gpus() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def command(
    job: Path, compute: ComputeRecipe, variables: Mapping[str, str] = os.environ
) -> tuple[list[str], dict[str, str]]:
    """The command line for a job file, and the environment variables to add to one's own."""
    root = str(DEPLOYMENTS.parent)
    paths = os.pathsep.join(filter(None, [root, variables.get("PYTHONPATH", "")]))
    kept = {name: variables.get(name, value) for name, value in KEEPS_MEMORY.items()}
    added = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **kept}
    if not launched(compute):
        return [sys.executable, "-m", WORKER, str(job)], added
    gpus, here = count_gpus(), compute.processes // compute.machines
    cores = int(variables.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    options = {
        "config_file": str(config_file(compute, gpus)),
        "num_processes": str(compute.processes),
        "num_machines": str(compute.machines),
        "machine_rank": "0",
        "main_process_port": "0",  # any free one
        "num_cpu_threads_per_process": str(max(1, cores // here)),
    }
    if compute.machines > 1:
        address = dict(zip(("main_process_ip", "main_process_port", "machine_rank"), ADDRESS, strict=True))
        options |= {option: variables[name] for option, name in address.items()}
    # Longer than a step usually takes, and shorter than the step waits.
    added["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN_SECONDS)
    if not gpus:
        added["ACCELERATE_USE_CPU"] = "true"
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, "--module", WORKER, str(job)], added


def config_file(compute: ComputeRecipe, gpus: int) -> Path:
    """The file of `deployments/accelerate/` for a strategy; numbers in it are replaced by the recipe's.

    DeepSpeed is not accelerate's business here: the worker drives it (`zero.py`), in processes started like any others.
    """
    if compute.strategy is Strategy.fsdp2:
        name = "fsdp2"
    elif compute.machines > 1:
        name = "multi-machine"
    else:
        name = "multi-gpu" if gpus else "cpu"
    return DEPLOYMENTS / "accelerate" / f"{name}.yaml"


def main(path: Path) -> None:
    """Become this machine's part of a training that the first machine has started."""
    job = TrainingJob.model_validate_json(path.read_text("utf-8"))
    check(job.compute, job.recipe.method)
    variables = child_environment({})
    line, added = command(path, job.compute, variables)
    os.execve(line[0], line, {**variables, **added})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Several processes: real ones, on CPUs over gloo, against one."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tasks.errors import InvalidRecipe, WorkerDied
from tasks.recipe.methods import FullMethod, LoraMethod, PromptTuningMethod, QLoraMethod
from tasks.recipe.stages import ComputeRecipe, Precision, Strategy
from tasks.training import events, launch, processes
from tasks.training.job import JOB, TrainingJob
from tasks.training.loop import Interrupted, Training
from tasks.training.outcome import Summary
from tasks.training.processes import DEPLOYMENTS

Make = Callable[..., TrainingJob]
TWO = ComputeRecipe(processes=2)
SHARED = {one: ComputeRecipe(processes=2, strategy=one) for one in Strategy}
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra `deepspeed` is not installed")
SHARING = [
    "fsdp2",
    pytest.param("zero2", marks=needs_deepspeed),
    pytest.param("zero3", marks=needs_deepspeed),
]
CONFIGURATIONS = ["cpu", "fsdp2", "multi-gpu", "multi-machine"]
LONG = {"max_steps": 100_000, "epochs": 100_000, "checkpoint_seconds": 1, "validations": 1}


def on(job: TrainingJob, compute: ComputeRecipe) -> TrainingJob:
    return job.model_copy(update={"compute": compute})


def run(job: TrainingJob) -> Summary:
    return launch.train(job, listen=lambda new: None)


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few steps of the tiny model do not pass between two looks."""
    monkeypatch.setattr(launch, "LOOK_EVERY_SECONDS", 0.02)


def points(job: TrainingJob, event: str, value: str = "loss") -> list[float]:
    return [point[value] for point in events.read(job.folder / events.EVENTS) if point["event"] == event]


def weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return load_file(next((job.folder / "weights").glob("*.safetensors")))


def assert_same_weights(ours: TrainingJob, theirs: TrainingJob) -> None:
    one, other = weights(ours), weights(theirs)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)


def workers(job: TrainingJob) -> list[psutil.Process]:
    """The training processes of a job, without their launcher, oldest first."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        line = process.info["cmdline"] or []
        if str(job.folder / JOB) in line and "accelerate.commands.launch" not in line:
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])


def test_two_processes_take_the_steps_of_one(job: Make) -> None:
    one, two = (job(name, gradient_accumulation=3) for name in ("one", "two"))
    single, double = Training(one).run(), run(on(two, TWO))
    assert points(two, "start", "steps") == [12]
    assert points(two, "step") == pytest.approx(points(one, "step"), rel=1e-4)
    assert points(two, "step", "grad_norm") == pytest.approx(points(one, "step", "grad_norm"), rel=1e-2)
    assert points(two, "validation") == pytest.approx(points(one, "validation"), rel=1e-4)
    assert double.tokens == single.tokens
    assert double.best_step == single.best_step
    assert double.peak_memory > 0
    assert_same_weights(one, two)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_next_try_ends_with_the_same_weights(job: Make) -> None:
    whole, killed = job("whole", max_steps=200), on(job("killed", max_steps=200, checkpoint_seconds=1), TWO)
    Training(whole).run()
    seen: list[psutil.Process] = []

    def kill(new: list[dict[str, Any]]) -> None:
        if not seen and any(event["event"] == "checkpoint" for event in new):
            seen.extend(workers(killed))
            seen[-1].kill()

    with pytest.raises(WorkerDied, match="next try goes on from its last checkpoint"):
        launch.train(killed, kill)
    assert len(seen) == 2
    assert workers(killed) == []
    run(killed)
    assert points(killed, "start", "from_step")[-1] > 0
    assert points(killed, "step") == pytest.approx(points(whole, "step"), rel=1e-2)
    assert_same_weights(whole, killed)


@pytest.mark.slow
def test_asking_the_launcher_to_end_leaves_a_checkpoint(job: Make) -> None:
    made = on(job(**LONG | {"checkpoint_seconds": 600}), TWO)

    def ask(new: list[dict[str, Any]]) -> None:
        if any(event["event"] == "step" for event in new) and (running := workers(made)):
            running[0].parent().terminate()

    with pytest.raises(WorkerDied, match="was asked to end"):
        launch.train(made, ask)
    assert workers(made) == []
    assert [path.name for path in (made.folder / "checkpoints").iterdir()] == [
        f"step-{int(max(points(made, 'step', 'step'))):08d}"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["verb", "launcher"])
def test_no_process_trains_on_when_the_verb_or_the_launcher_is_gone(job: Make, gone: str) -> None:
    verb = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    made = on(job(**LONG | {"checkpoint_seconds": 600}), TWO).model_copy(update={"parent": verb.pid})
    (made.folder / JOB).write_text(made.model_dump_json(), "utf-8")
    line, added = processes.command(made.folder / JOB, made.compute)
    launcher = subprocess.Popen(line, env={**os.environ, **added})
    within(120, lambda: len(points(made, "step")) > 3)
    (verb if gone == "verb" else launcher).kill()
    within(60, lambda: workers(made) == [])
    verb.kill()
    verb.wait()
    assert launcher.wait(60) != 0
    assert points(made, "failed", "failure") == ["interrupted"]
    assert len(list((made.folder / "checkpoints").glob("step-*"))) == 1


def within(seconds: float, happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.2)


class Ended(BaseException):
    """What Prefect's TerminationSignal is: no Exception."""


@pytest.mark.slow
@pytest.mark.parametrize("method", [LoraMethod(rank=4, alpha=8, dropout=0.1), FullMethod()], ids=["lora", "full"])
@pytest.mark.parametrize("strategy", SHARING)
def test_weights_that_are_shared_out_take_the_steps_of_whole_ones(job: Make, strategy: str, method: Any) -> None:
    one, shared = (job(name, method=method, gradient_accumulation=3) for name in ("one", "shared"))
    Training(one).run()
    run(on(shared, SHARED[Strategy(strategy)]))
    assert points(shared, "step") == pytest.approx(points(one, "step"), rel=1e-3)
    assert points(shared, "step", "grad_norm") == pytest.approx(points(one, "step", "grad_norm"), rel=1e-2)
    assert points(shared, "validation") == pytest.approx(points(one, "validation"), rel=1e-3)
    for value in ("parameters", "trainable_parameters"):
        assert points(shared, "start", value) == points(one, "start", value)
    assert_same_weights(one, shared)


@pytest.mark.slow
@needs_deepspeed
def test_zero2_leaves_a_quantised_base_whole(job: Make) -> None:
    one, shared = (
        job(name, method=QLoraMethod(rank=4, alpha=8), gradient_accumulation=2) for name in ("one", "shared")
    )
    Training(one).run()
    run(on(shared, SHARED[Strategy.zero2]))
    assert points(shared, "step") == pytest.approx(points(one, "step"), rel=1e-3)
    assert_same_weights(one, shared)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.usefixtures("looks_often")
@pytest.mark.parametrize("strategy", [Strategy.zero2, Strategy.zero3])
def test_the_engine_keeps_what_moves_in_fp32_where_it_computes_in_bf16(job: Make, strategy: Strategy) -> None:
    whole, broken = (job(name, method=FullMethod(), max_steps=60) for name in ("whole", "broken"))
    compute = SHARED[strategy].model_copy(update={"precision": Precision.bf16})
    run(on(whole, compute))

    def end(new: list[dict[str, Any]]) -> None:
        if any(event["event"] == "step" and event["step"] > 3 for event in new):
            raise Ended

    with pytest.raises(Ended):
        launch.train(on(broken, compute), end)
    run(on(broken, compute))
    assert 3 < points(broken, "start", "from_step")[-1] < 60
    assert points(broken, "step") == pytest.approx(points(whole, "step"), rel=1e-2)
    assert points(whole, "step")[-1] < points(whole, "step")[0]
    assert all(value.dtype is torch.float32 for value in weights(whole).values())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights(whole).values())


@pytest.mark.slow
@pytest.mark.usefixtures("looks_often")
@pytest.mark.parametrize("strategy", SHARING)
def test_a_checkpoint_goes_from_one_process_to_shares_and_back(job: Make, strategy: str) -> None:
    one, relay = (job(name, method=FullMethod(), max_steps=60) for name in ("one", "relay"))
    Training(one).run()
    asked = iter([False] * 4 + [True])
    with pytest.raises(Interrupted):
        Training(relay, stop=lambda: next(asked)).run()

    def end(new: list[dict[str, Any]]) -> None:
        if any(event["event"] == "step" and event["step"] > 5 for event in new):
            raise Ended

    with pytest.raises(Ended):
        launch.train(on(relay, SHARED[Strategy(strategy)]), end)
    Training(relay).run()
    starts = points(relay, "start", "from_step")
    assert starts[:2] == [0, 5] and 5 < starts[2] < 60
    assert points(relay, "step") == pytest.approx(points(one, "step"), rel=1e-2)
    assert_same_weights(one, relay)


@pytest.mark.slow
def test_two_machines_take_the_steps_of_one(job: Make) -> None:
    one, two = (job(name, gradient_accumulation=2) for name in ("one", "two"))
    Training(one).run()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    others: list[subprocess.Popen[bytes]] = []

    def start_other() -> None:
        while not (two.folder / JOB).exists():
            time.sleep(0.1)
        line = [sys.executable, "-m", "tasks.training.processes", str(two.folder / JOB)]
        others.append(subprocess.Popen(line, env={**os.environ, **address, "NODE_RANK": "1"}))

    second = threading.Thread(target=start_other)
    second.start()
    launch.train(on(two, ComputeRecipe(processes=2, machines=2)), lambda new: None, {**address, "NODE_RANK": "0"})
    second.join()
    assert others[0].wait(60) == 0
    assert points(two, "step") == pytest.approx(points(one, "step"), rel=1e-4)
    assert_same_weights(one, two)


@pytest.mark.parametrize(
    ("compute", "gpus", "method", "text"),
    [
        ({"processes": 2}, 1, LoraMethod(), "compute.processes: 2 on this machine, which has 1 GPU; each needs one"),
        ({"processes": 4, "machines": 2}, 2, LoraMethod(), "MASTER_ADDR, MASTER_PORT, NODE_RANK not set"),
        ({"processes": 2, "strategy": "zero2"}, 2, LoraMethod(), "needs the package deepspeed, which is not installed"),
        ({"processes": 2, "strategy": "zero3"}, 0, LoraMethod(), "needs the package deepspeed, which is not installed"),
        ({"processes": 2, "strategy": "fsdp2"}, 2, PromptTuningMethod(), "use replicated"),
    ],
)
def test_what_this_machine_cannot_start_is_refused_before_it_is_started(
    compute: dict[str, Any], gpus: int, method: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number of GPUs is the machine's; a machine with some is not at hand.
    monkeypatch.setattr(processes, "count_gpus", lambda: gpus)
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(InvalidRecipe, match=text):
        processes.check(ComputeRecipe(**compute), method, {})


def test_a_refused_training_leaves_no_job_behind(job: Make) -> None:
    made = on(job(method=PromptTuningMethod()), SHARED[Strategy.fsdp2])
    with pytest.raises(InvalidRecipe, match="use replicated"):
        run(made)
    assert list(made.folder.iterdir()) == []


def test_processes_that_machines_cannot_share_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be dealt out evenly to 2 machines"):
        ComputeRecipe(processes=3, machines=2)


def test_one_process_cannot_share_out() -> None:
    with pytest.raises(ValueError, match="with 1 process use replicated"):
        ComputeRecipe(strategy=Strategy.zero3)


@pytest.mark.parametrize(
    ("name", "compute", "gpus"),
    [
        ("cpu", {"processes": 2}, 0),
        ("multi-gpu", {"processes": 2}, 2),
        ("fsdp2", {"processes": 2, "strategy": "fsdp2"}, 2),
        ("multi-machine", {"processes": 4, "machines": 2}, 2),
    ],
)
def test_accelerate_accepts_each_configuration_as_it_is_launched(
    name: str, compute: dict[str, Any], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
    from accelerate.utils.launch import prepare_multi_gpu_env

    assert sorted(path.stem for path in (DEPLOYMENTS / "accelerate").iterdir()) == sorted(CONFIGURATIONS)
    load_config_from_file(str(DEPLOYMENTS / "accelerate" / f"{name}.yaml"))
    monkeypatch.setattr(processes, "count_gpus", lambda: gpus)
    address = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29777", "NODE_RANK": "1"}
    line, added = processes.command(Path("job.json"), ComputeRecipe(**compute), address | {"OMP_NUM_THREADS": "8"})
    config = str(DEPLOYMENTS / f"accelerate/{name}.yaml")
    assert line[1:5] == ["-m", "accelerate.commands.launch", "--config_file", config]
    told, _, _ = _validate_launch_command(launch_command_parser().parse_args(line[3:]))
    machines = compute.get("machines", 1)
    assert (told.num_processes, told.num_machines) == (compute["processes"], machines)
    assert (told.machine_rank, told.main_process_port) == ((1, 29777) if machines > 1 else (0, 0))
    assert told.num_cpu_threads_per_process == 4
    assert told.multi_gpu or told.use_fsdp
    assert ("ACCELERATE_USE_CPU" in added) is (gpus == 0)
    with patch_environment(**prepare_multi_gpu_env(told)):
        assert not told.use_fsdp or FullyShardedDataParallelPlugin().fsdp_version == 2


@pytest.mark.parametrize("stage", [2, 3])
def test_accelerate_accepts_the_deepspeed_configurations(stage: int) -> None:
    from accelerate.utils import DeepSpeedPlugin

    assert sorted(path.name for path in (DEPLOYMENTS / "deepspeed").iterdir()) == ["zero2.json", "zero3.json"]
    plugin = DeepSpeedPlugin(hf_ds_config=str(DEPLOYMENTS / "deepspeed" / f"zero{stage}.json"))
    assert plugin.zero_stage == stage

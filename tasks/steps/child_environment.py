"""What a child process is told: this process's environment in, the part of it that runs a model out.

A training process and the code of a registered version speak to no server, so no credential is handed on to them.
Names are allowed one by one or by the prefix of the library that reads them; everything else stays here.
"""

import os
import re
from collections.abc import Mapping

NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV"),
        *("XDG_CACHE_HOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "CONDA_PREFIX"),
        # Compilers that torch and DeepSpeed call for kernels of their own.
        *("CC", "CXX", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "MAX_JOBS"),
        # A training on several processes or machines.
        *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE"),
        *("LOCAL_WORLD_SIZE", "TOKENIZERS_PARALLELISM"),
        *("PYTHONHOME", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONHASHSEED"),
        *("PYTHONFAULTHANDLER", "PYTHONWARNINGS", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"),
    }
)
PREFIXES = (
    *("LC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "MALLOC_"),
    *("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "NVTE_", "GLOO_", "TP_SOCKET_", "UCX_", "FI_", "IBV_"),
    *("ROCR_", "ROCM_", "HIP_", "HSA_", "RCCL_", "MIOPEN_", "GPU_", "ZE_", "SYCL_", "ONEAPI_", "CCL_"),
    *("TORCH", "PYTORCH_", "TRITON_", "ACCELERATE_", "FSDP_", "DS_", "DEEPSPEED_", "BNB_", "BITSANDBYTES_"),
    *("HF_HOME", "HF_HUB_", "HF_MODULES_", "HF_DATASETS_", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_"),
)
SECRET = re.compile(
    r"(^|_)(\w*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?|KEYS?|(API|ACCESS|SECRET|PRIVATE)KEYS?|AUTH|PASS|PWD)(_|$)",
    re.IGNORECASE,
)
"""Words of a name with which a value stays here whatever its prefix is; a PKEY is a number of a network, no key."""
SET = {
    # Every interpreter below the child, too: a file in the working folder is not a module.
    "PYTHONSAFEPATH": "1",
    # Models are folders by now; a library that asks a hub would ask without need.
    "HF_HUB_OFFLINE": "1",
    # transformers would fetch compiled kernels from a hub, where the package `kernels` is installed.
    "USE_HUB_KERNELS": "NO",
}


def child_environment(added: Mapping[str, str], variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that a process needs to load and run a model, and no others; `added` go before all.

    `variables` are this process's own where none are given.

    >>> variables = {"PATH": "/bin", "NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_1", "PREFECT_API_KEY": "p"}
    >>> sorted(set(child_environment({"PATH": "/usr/bin"}, variables).items()) - set(SET.items()))
    [('NCCL_DEBUG', 'INFO'), ('PATH', '/usr/bin')]
    """
    known = os.environ if variables is None else variables
    handed_on = {name: value for name, value in known.items() if is_handed_on(name)}
    if "PYTHONPATH" in handed_on:
        handed_on["PYTHONPATH"] = without_working_folder(handed_on["PYTHONPATH"])
    return {**handed_on, **SET, **added}


def is_handed_on(name: str) -> bool:
    """Whether a variable of this name is for a child that runs a model.

    >>> [is_handed_on(name) for name in ("NCCL_IB_PKEY", "TOKENIZERS_PARALLELISM", "HF_HUB_ACCESSTOKEN")]
    [True, True, False]
    """
    return (name in NAMES or name.startswith(PREFIXES)) and not SECRET.search(name)


def without_working_folder(paths: str) -> str:
    """A search path without its empty entries, which mean the working folder.

    >>> without_working_folder("/a::/b:")
    '/a:/b'
    """
    return os.pathsep.join(entry for entry in paths.split(os.pathsep) if entry)

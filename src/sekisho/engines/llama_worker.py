"""The child process that runs llama.cpp: `python -m sekisho.engines.llama_worker --config JSON --port N`.

It serves llama.cpp's own HTTP interface on 127.0.0.1, behind the key in `KEY_ENV` that only our parent knows, so that
nobody on the machine goes round the gateway. Trouble is told in one line on standard error; exit code 78 means that
starting again cannot help. The C++ code may abort at any time: that ends this process and no other.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from sekisho.engines import gguf_header, llama_demotion, native_build
from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_demotion import folder
from sekisho.engines.worker_process import (
    EXIT_CONFIGURATION,
    EXIT_FAILED,
    KEY_ENV,
    WorkerError,
    begin,
    check_port,
    environment,
    free_port,
    new_key,
    readable,
)

__all__ = [
    "EXIT_CONFIGURATION",
    "EXIT_FAILED",
    "KEY_ENV",
    "WorkerError",
    "argv",
    "check_port",
    "environment",
    "free_port",
    "main",
    "new_key",
]
BUILTIN = "builtin"
# Threads of the HTTP server: each connection holds one, idle ones that are kept alive included.
_HTTP_THREADS_BESIDE_SLOTS = 32
_SMALL_MODEL_BYTES = 64 * 2**20
SPECULATIONS: Final = ("off", "ngram")
OPTIONS: Final = ("cache_ram_mib", llama_demotion.OPTION, "speculation")
_NOT_NEEDED = (
    "demote_after_prefill takes memory for nothing here: this build reads prompts into a quantised cache about as fast "
    "as at 16 bits (sekisho policy set kv.demote_after_prefill=false)"
)
_DEVICE_ENVS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")


def argv(config: ModelConfig, port: int) -> tuple[str, ...]:
    """The command line of a worker."""
    body = msgspec.json.encode(config).decode()
    return (sys.executable, "-m", "sekisho.engines.llama_worker", "--config", body, "--port", str(port))


def model_path(config: ModelConfig) -> Path:
    """Where the weights are. Raises `WorkerError` when they are not there or are not a GGUF."""
    if config.path is None:
        raise WorkerError(f"model {config.name!r} has no `path`")
    if config.path == BUILTIN:
        from sekisho.engines import builtin  # the package of weights is optional

        path = builtin.path()
    else:
        path = Path(config.path).expanduser()
    readable(path, "model file")
    problem = gguf_header.problem(path)
    if problem is not None:
        raise WorkerError(f"{path}: {problem}")
    return path


def check_memory(path: Path, config: ModelConfig) -> None:
    """Refuses weights that cannot fit, before the system starts to swap or kills somebody. Only a floor: the weights
    themselves, where no GPU could take them. llama.cpp says the rest."""
    import xllamacpp

    names = [device["type"].name for device in xllamacpp.get_device_info()]
    if config.gpu_layers != 0 and any("GPU" in name for name in names):
        return
    size, free = path.stat().st_size, psutil.virtual_memory().available
    if size > free:
        raise WorkerError(
            f"{path.name} needs at least {size / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free: "
            "use a smaller model or a smaller quantisation",
            final=False,
        )


def _show_devices(config: ModelConfig) -> None:
    """Narrows the accelerators that llama.cpp will see; must come before it is loaded."""
    if config.devices is not None:
        os.environ.update(dict.fromkeys(_DEVICE_ENVS, config.devices))


def parameters(config: ModelConfig, path: Path, port: int, api_key: str) -> Any:
    """The settings in llama.cpp's own structure."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {config.name}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.api_keys = [api_key]
    params.ui = False
    params.cors_origins = ""
    params.endpoint_metrics = params.endpoint_slots = params.endpoint_props = True
    params.n_threads_http = config.slots + _HTTP_THREADS_BESIDE_SLOTS
    params.n_ctx, params.n_parallel = config.context * config.slots, config.slots
    params.fit_params = False  # not cut to fit memory: what the settings say, up to what the model was made for
    params.ctx_shift = False  # a full context ends with `length`; it does not forget the beginning in silence
    params.cont_batching = params.cache_prompt = True
    params.n_gpu_layers = config.gpu_layers if config.gpu_layers >= 0 else 999
    params.cache_type_k, params.cache_type_v = (
        getattr(xllamacpp.ggml_type, f"GGML_TYPE_{kind.upper()}") for kind in (config.kv_type_k, config.kv_type_v)
    )
    threads = config.threads or default_threads(path.stat().st_size)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.no_extra_bufts = not native_build.extra_buffers()
    params.use_jinja = True
    _set_options(params, config)
    if config.chat_template is not None:
        template = Path(config.chat_template).expanduser()
        readable(template, "chat template")
        params.chat_template = template.read_text(encoding="utf-8")
    if config.mmproj is not None:
        projector = Path(config.mmproj).expanduser()
        readable(projector, "mmproj file")
        params.mmproj.path = str(projector)
    if config.embeddings:
        params.embedding = True
        params.n_batch = params.n_ubatch = max(512, min(config.context, 8192))  # an input must fit one batch
        if not gguf_header.has_key(path, ".pooling_type"):
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return params


def check_options(config: ModelConfig) -> None:
    """Refuses what is none of `OPTIONS`. Raises `WorkerError`."""
    unknown = sorted(set(config.options) - set(OPTIONS))
    if unknown:
        raise WorkerError(f"options: {', '.join(unknown)} unknown; there are {', '.join(OPTIONS)}")
    cache = config.options.get("cache_ram_mib", 0)
    if not isinstance(cache, int) or isinstance(cache, bool) or cache < -1:
        raise WorkerError(f"options.cache_ram_mib: must be MiB of memory, 0 for none, -1 for no limit, is {cache!r}")
    if config.options.get("speculation", "off") not in SPECULATIONS:
        given = config.options["speculation"]
        raise WorkerError(f"options.speculation: {given!r} is none of {', '.join(SPECULATIONS)}")
    demotes = config.options.get(llama_demotion.OPTION, False)
    if not isinstance(demotes, bool):
        raise WorkerError(f"options.{llama_demotion.OPTION}: must be true or false, is {demotes!r}")


def check_demotion(config: ModelConfig) -> bool:
    """Whether these settings have prompts read at 16 bits first. Raises `WorkerError` where they cannot."""
    check_options(config)
    if not llama_demotion.asked(config):
        return False
    if (why := llama_demotion.why_not(config)) is not None:
        raise WorkerError(f"options.{llama_demotion.OPTION}: {why}")
    return True


def _set_options(params: Any, config: ModelConfig) -> None:
    """`cache_ram_mib`: host memory for prompts that were read before and whose slot others have taken since.
    `speculation`: `ngram` proposes what followed the last tokens where they stood before."""
    import xllamacpp

    check_options(config)
    if "cache_ram_mib" in config.options:
        params.cache_ram_mib = config.options["cache_ram_mib"]
    if config.options.get("speculation") == "ngram":
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]


def default_threads(size_bytes: int) -> int:
    """Physical cores that we may run on: llama.cpp gains nothing from a core's second thread. One for a small model,
    whose threads would spend their time waiting for each other: measured on two busy cores, the second thread made a
    2 MB model six to twenty times slower."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if size_bytes < _SMALL_MODEL_BYTES:
        return 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def serve(config: ModelConfig, port: int, api_key: str) -> None:
    """Loads the model and serves until this process is told to end. Raises `WorkerError`.

    Signals keep their default: they end the process at once, while it loads, too. Whoever stops us has let the gateway
    drain, and there is nothing here to save.
    """
    path = model_path(config)
    check_port(port)
    _show_devices(config)
    native_build.activate()
    check_memory(path, config)
    folder.remove_leftovers()
    if check_demotion(config):
        from sekisho.engines.llama_demotion import serving

        if native_build.attention():
            print(_NOT_NEEDED, file=sys.stderr, flush=True)  # noqa: T201
        serving.serve(config, path, port, api_key, lambda part, at, files: started(part, path, at, api_key, files))
    server = started(config, path, port, api_key)
    _tell(f"serving {config.name} ({path}) on {server.listening_address}")
    while True:
        time.sleep(3600)


def started(config: ModelConfig, path: Path, port: int, api_key: str, slot_files: Path | None = None) -> Any:
    """One of llama.cpp's servers, with its model loaded, for as long as somebody holds it. `slot_files`: a folder, in
    which slots may be saved. Raises `WorkerError`."""
    import xllamacpp

    try:
        params = parameters(config, path, port, api_key)
        if slot_files is not None:
            params.slot_save_path = f"{slot_files}/"
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise WorkerError(
            f"llama.cpp could not start {path.name} (context {config.context} x {config.slots} slots, "
            f"KV {config.kv_type_k}/{config.kv_type_v}): {error} The lines above say why.",
            final=False,
        ) from error


def _tell(line: str) -> None:
    """llama.cpp's log has a thread of its own, which may be in the middle of a line: ours begins a new one."""
    start = "\n" if "xllamacpp" in sys.modules else ""
    sys.stderr.write(f"{start}{line}\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    try:
        order = begin("sekisho.engines.llama_worker", __doc__, arguments)
        serve(order.config, order.port, order.api_key)
    except WorkerError as error:
        _tell(f"error: {error}")
        return EXIT_CONFIGURATION if error.final else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())

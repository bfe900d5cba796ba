"""Engines for the actuators' tests: small servers that speak the vendors' published interfaces, workers of ours, and a
policy that differs from the default in every field."""

import asyncio
import copy
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from kept_port import KeptPort

from sekisho.control.policy import (
    GIB,
    EngineSection,
    IoSection,
    KvSection,
    Policy,
    QualitySection,
    SchedulerSection,
)
from sekisho.engines import lifeline, llama_worker, torch_worker, worker_process
from sekisho.engines.config import ModelConfig
from sekisho.kv.policy import KVPolicy, LevelThresholds, from_plain
from sekisho.ops.engine_swap import Placed, SwapReport

KEY = "a-key-that-nobody-may-see"
UNLIKE = Policy(
    KvSection(
        mode="quality_optimized",
        recent_window=128,
        level_thresholds=LevelThresholds(L1_int8=0.8, L2_int4=0.6, L3_evict=0.2),
        budget=0.4,
        evict=True,
        key_type="q4_0",
        value_type="q4_0",
        demote_after_prefill=True,
    ),
    IoSection(enable_iobinding=False, dml_pool_bytes=3 * GIB, host_pool_bytes=5 * GIB),
    SchedulerSection(mode="npu_only", prefill_device="npu", decode_device="cpu"),
    QualitySection(max_delta_ppl=0.7, min_accept_rate=0.6),
    EngineSection(slots=3, context=512, gpu_layers=7, threads=2, prompt_cache_bytes=64 * 2**20, speculation="ngram"),
)
LLAMA_METRICS = """\
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
# HELP llamacpp:requests_deferred Number of requests deferred
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 2
# HELP llamacpp:spec_decode_num_draft_tokens_total Speculative: Total draft tokens generated
# TYPE llamacpp:spec_decode_num_draft_tokens_total counter
llamacpp:spec_decode_num_draft_tokens_total 40
# HELP llamacpp:spec_decode_num_accepted_tokens_total Speculative: Total draft tokens accepted by the target model
# TYPE llamacpp:spec_decode_num_accepted_tokens_total counter
llamacpp:spec_decode_num_accepted_tokens_total 10
"""
VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/served"} 3.0
vllm:num_requests_running{engine="1",model_name="org/served"} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="org/served"} 5.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="org/served"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="org/served"} 0.75
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="org/served"} 100.0
# HELP vllm:spec_decode_num_accepted_tokens_total Number of accepted tokens.
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="org/served"} 60.0
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",engine="0",\
kv_cache_memory_bytes="2147483648",kv_cache_size_tokens="65536",kv_offloading_size="None",num_gpu_blocks="4096"} 1.0
"""
LEMONADE_METRICS = """\
# HELP lemonade_llamacpp_requests_processing Number of requests processing
# TYPE lemonade_llamacpp_requests_processing gauge
lemonade_llamacpp_requests_processing{model_name="Qwen3-0.6B-GGUF",recipe="llamacpp"} 2
lemonade_llamacpp_requests_processing{model_name="another",recipe="llamacpp"} 7
# HELP lemonade_llamacpp_spec_decode_num_draft_tokens_total Speculative: Total draft tokens generated
# TYPE lemonade_llamacpp_spec_decode_num_draft_tokens_total counter
lemonade_llamacpp_spec_decode_num_draft_tokens_total{model_name="Qwen3-0.6B-GGUF",recipe="llamacpp"} 8
# HELP lemonade_llamacpp_spec_decode_num_accepted_tokens_total Speculative: Total draft tokens accepted
# TYPE lemonade_llamacpp_spec_decode_num_accepted_tokens_total counter
lemonade_llamacpp_spec_decode_num_accepted_tokens_total{model_name="Qwen3-0.6B-GGUF",recipe="llamacpp"} 6
"""
Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]


class EngineServer:
    """A server on 127.0.0.1 that answers whoever has KEY. `asked`: method, path and body of each request. `trouble`
    answers instead, where it is set."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.trouble: Answering | None = None
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.trouble is not None:
            return await self.trouble(request)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "invalid key"}}, status=401)
        body = await request.read()
        self.asked.append((request.method, request.rel_url.raw_path, json.loads(body) if body else None))
        return self.answer(request.method, request.path, self.asked[-1][2])

    def answer(self, method: str, path: str, body: Any) -> web.Response:
        raise NotImplementedError

    def wrote(self) -> list[tuple[str, str, Any]]:
        """What was asked that could change something."""
        return [each for each in self.asked if each[0] != "GET" and not (each[2] or {}).get("dry_run")]


class Llama(EngineServer):
    """llama.cpp's server: of two slots one holds 200 tokens and the other was never used."""

    def answer(self, method: str, path: str, body: Any) -> web.Response:
        slots = [
            {"id": 0, "n_ctx": 1024, "speculative": False, "is_processing": False},
            {"id": 1, "n_ctx": 1024, "is_processing": True, "id_task": 4, "n_prompt_tokens": 200},
        ]
        if path == "/metrics":
            return web.Response(text=LLAMA_METRICS)
        return web.json_response({"/health": {"status": "ok"}, "/slots": slots}.get(path, {}))


class Torch(EngineServer):
    """The torch engine's worker: its policy changes for good."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = KVPolicy()

    def began(self, config: ModelConfig) -> None:
        """Another worker, with these settings."""
        self.policy = from_plain(config.kv or {})

    def answer(self, method: str, path: str, body: Any) -> web.Response:
        if path == "/kv/policy":
            self.policy = from_plain(body, self.policy)
            return web.json_response({"policy": msgspec.to_builtins(self.policy), "changed": {}})
        cache = {
            "bytes_used": 100,
            "bytes_at_16_bits": 400,
            "level_bytes": {"L0": 40, "L1": 30, "L2": 20, "L3": 0},
            "chunks": 6,
            "levels": {"L0": 1, "L1": 2, "L2": 3, "L3": 0},
        }
        told = {"policy": msgspec.to_builtins(self.policy), "slots": 4, "running": 1, "prefilling": 1, "waiting": 2}
        told |= {"context": 4096, "tokens": 70, "limit_bytes": 5000, "reserved_bytes": 900, "cache": cache}
        return web.json_response(told if path == "/kv" else {"status": "ok"})


class Vllm(EngineServer):
    def answer(self, method: str, path: str, body: Any) -> web.Response:
        if path == "/metrics":
            return web.Response(text=VLLM_METRICS)
        if path == "/version":
            return web.json_response({"version": "0.32.0"})
        entry = {"id": "org/served", "object": "model", "root": "org/model", "max_model_len": 8192}
        return web.json_response({"object": "list", "data": [entry]})


class Lemonade(EngineServer):
    """lemond with one model of one recipe: options are saved, and hold for the process that the next load starts."""

    def __init__(self, recipe: str = "llamacpp", device: str = "gpu") -> None:
        super().__init__()
        self.recipe, self.device = recipe, device
        self.saved: dict[str, Any] = {"llamacpp_args": "--no-mmap -ctk q8_0"} if recipe == "llamacpp" else {}
        self.refuses_to_load: Callable[[dict[str, Any]], bool] = lambda options: False
        self.running = self.effective(self.saved)

    def effective(self, saved: dict[str, Any]) -> dict[str, Any]:
        mine: dict[str, Any] = {"ctx_size": 4096, "merge_args": True}
        if self.recipe == "llamacpp":
            mine |= {"ctx_size": 8192, "llamacpp_args": "", "llamacpp_backend": "vulkan", "llamacpp_device": ""}
        return {**mine, **saved}

    def answer(self, method: str, path: str, body: Any) -> web.Response:
        if path.endswith("/options"):
            return self._options(method, body)
        if path == "/v1/load":
            options = self.effective(self.saved)
            if self.refuses_to_load(options):
                error = {"message": "llama-server ended with exit code 1", "code": "model_load_error"}
                return web.json_response({"error": error}, status=500)
            self.running = options
            return web.json_response({"status": "success", "model_name": body["model_name"], "recipe": self.recipe})
        if path == "/metrics":
            return web.Response(text=LEMONADE_METRICS)
        return web.json_response(self._told(path))

    def _options(self, method: str, body: Any) -> web.Response:
        saved = dict(self.saved)
        if method == "POST":
            asked = {name: value for name, value in body.items() if name not in ("dry_run", "model_name")}
            if unknown := set(asked) - set(self.effective({})):
                text = f"Unknown option '{unknown.pop()}' for recipe '{self.recipe}'"
                return web.json_response({"error": text}, status=400)
            for name, value in asked.items():
                saved.pop(name, None)
                if value not in (None, ""):
                    saved[name] = value
            if not body.get("dry_run"):
                self.saved = saved
        effective = self.effective(saved) | {"model_name": "Qwen3-0.6B-GGUF"}
        return web.json_response(
            {"model_name": "Qwen3-0.6B-GGUF", "recipe": self.recipe, "saved": self.saved, "effective": effective}
        )

    def _told(self, path: str) -> dict[str, Any]:
        one = {"model_name": "Qwen3-0.6B-GGUF", "device": self.device, "recipe": self.recipe, "is_busy": True}
        one |= {"recipe_options": self.running, "launch_command": ["llama-server", "-np", "2"], "pinned": False}
        gpu = {"devices": ["cpu", "amd_gpu"], "state": "installed"}
        backends = {"rocm": gpu, "vulkan": gpu, "metal": {"devices": [], "state": "unsupported"}}
        backends["cpu"] = {"devices": ["cpu"], "state": "installable"}
        return {
            "/v1/health": {"status": "ok", "version": "10.4.0", "all_models_loaded": [one]},
            "/v1/stats": {"tokens_per_second": 33.3, "time_to_first_token": 2.1},
            "/v1/system-info": {"recipes": {"llamacpp": {"default_backend": "vulkan", "backends": backends}}},
        }.get(path, {})


class Other(EngineServer):
    """Anything with OpenAI's interface."""

    def answer(self, method: str, path: str, body: Any) -> web.Response:
        if path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})
        return web.Response(status=404, text="not found")


GENAI_CONFIG = {
    "model": {
        "type": "phi3",
        "context_length": 4096,
        "eos_token_id": [1, 2],
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": "model.onnx",
            "num_key_value_heads": 8,
            "inputs": {"input_ids": "input_ids"},
        },
    },
    "search": {"max_length": 4096, "top_k": 50, "do_sample": True},
}


def write_genai_folder(folder: Path, providers: list[dict[str, Any]] | None = None) -> Path:
    """A model folder with settings as the library's model builder writes them, and no weights."""
    config: dict[str, Any] = copy.deepcopy(GENAI_CONFIG)
    config["model"]["decoder"]["session_options"]["provider_options"] = providers or []
    folder.mkdir(exist_ok=True)
    (folder / "genai_config.json").write_text(json.dumps(config, indent=4))
    return folder


class NotedSwapper:
    """Does as it is told, in its own notes. `began` is told the settings of each new worker."""

    def __init__(
        self, config: ModelConfig, url: str, began: Callable[[ModelConfig], None] = lambda config: None
    ) -> None:
        self.config, self.url, self._began = config, url, began
        self.asked: list[dict[str, Any]] = []
        self.fails: str | None = None

    def placed(self) -> Placed:
        return Placed(self.config, self.url)

    async def swap(self, model: str, changes: dict[str, Any]) -> SwapReport:
        self.asked.append(changes)
        was = msgspec.to_builtins(self.config)
        if self.fails is not None:
            return SwapReport(model, "failed", "side_by_side", self.fails, 1.0, None, 2.0, was, was)
        self.config = msgspec.convert(was | changes, ModelConfig)
        self._began(self.config)
        now = msgspec.to_builtins(self.config)
        return SwapReport(model, "moved", "side_by_side", "there is room", 1.0, 1.5, 2.0, was, now)


class WorkerSwapper:
    """Real workers: each swap starts another one and ends the one before, once the new one serves."""

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.config, self.url = config, ""
        self.log = folder / "worker.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._ports: list[KeptPort] = []

    def placed(self) -> Placed:
        return Placed(self.config, self.url)

    def start(self, config: ModelConfig) -> None:
        """Returns once it serves."""
        child, url = self._begin(config)
        _wait(url, child)
        self._take_over(config, url, child)

    async def swap(self, model: str, changes: dict[str, Any]) -> SwapReport:
        was = msgspec.to_builtins(self.config)
        config = msgspec.convert(was | changes, ModelConfig)
        child, url = self._begin(config)  # in this thread: a worker ends with the thread that started it
        try:
            await asyncio.to_thread(_wait, url, child)
        except ChildProcessError as error:
            return SwapReport(model, "failed", "side_by_side", str(error), 1.0, None, 2.0, was, was)
        self._take_over(config, url, child)
        now = msgspec.to_builtins(config)
        return SwapReport(model, "moved", "side_by_side", "there is room", 1.0, 1.5, 2.0, was, now)

    def _begin(self, config: ModelConfig) -> tuple[subprocess.Popen[bytes], str]:
        self._ports.append(KeptPort())
        port = self._ports[-1].number
        argv = (torch_worker if config.engine == "torch" else llama_worker).argv(config, port)
        env = os.environ | lifeline.environment() | worker_process.environment(KEY)
        with self.log.open("wb") as log:
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env)
        return child, f"http://127.0.0.1:{port}/v1"

    def _take_over(self, config: ModelConfig, url: str, child: subprocess.Popen[bytes]) -> None:
        before, self.config, self.url, self._child = self._child, config, url, child
        if before is not None:
            _end(before)

    def stop(self) -> None:
        if self._child is not None:
            _end(self._child)
        for port in self._ports:
            port.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


def _wait(url: str, child: subprocess.Popen[bytes]) -> None:
    """Until it has loaded its model. Raises ChildProcessError where it ends instead."""
    while child.poll() is None:
        try:
            with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=10):
                return
        except OSError:
            time.sleep(0.05)  # it does not listen yet, or says that it is loading
    _end(child)
    raise ChildProcessError(f"the worker ended with exit code {child.returncode}")

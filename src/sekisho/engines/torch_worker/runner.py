"""The thread that runs the model. In each round: what was asked of it from outside, cancelled sequences out, waiting
ones in as memory allows, one portion of a prompt, one token for all that run."""

import concurrent.futures
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch

from sekisho.engines.torch_worker.admission import idle_bytes, most_tokens, sequence_bytes
from sekisho.engines.torch_worker.batch import Answers, Batch, choose
from sekisho.engines.torch_worker.model import Loaded
from sekisho.engines.torch_worker.refusal import Refused, too_long
from sekisho.engines.torch_worker.requests import Ask
from sekisho.engines.torch_worker.sequence import Sequence
from sekisho.engines.worker_process import EXIT_FAILED
from sekisho.kv.policy import KVPolicy

log = logging.getLogger(__name__)

Publish = Callable[[Answers], None]
Result = TypeVar("Result")


class Runner(threading.Thread):
    """`submit`, `cancel`, `call` and `plan` may be called from any thread; `publish` is called in this one, once a
    round. The rest belongs to this thread.

    Sequences are admitted in the order of their coming, `slots` at once, and only where what each may come to at most
    fits into `limit_bytes` together.
    """

    def __init__(
        self, loaded: Loaded, policy: KVPolicy, *, slots: int, limit_bytes: int, chunk: int, publish: Publish
    ) -> None:
        super().__init__(name="model", daemon=True)
        self.loaded, self.policy, self.slots, self.limit_bytes = loaded, policy, slots, limit_bytes
        self.batch = Batch(loaded)
        self.prefilling: deque[Sequence] = deque()
        self.waiting: deque[Sequence] = deque()
        self.held_bytes = 0  # by measurements, which give way where a sequence could be admitted without them
        self._chunk, self._publish = chunk, publish
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()

    # --- from any thread ---------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """The longest sequence that can be served, prompt and answer."""
        return most_tokens(self.loaded.layers, self.policy, self.limit_bytes, self.loaded.context)

    def plan(self, ask: Ask) -> Sequence:
        """A sequence for `submit`. Raises `Refused` for one that cannot be served, however long it waits."""
        prompt, context = len(ask.prompt), self.context
        if not prompt:
            raise Refused("the prompt has no tokens", param="prompt")
        if prompt >= context:
            raise too_long(f"the prompt has {prompt} tokens, the context length is {context}")
        most = self.loaded.context - prompt
        if ask.max_tokens is not None:
            most = min(most, ask.max_tokens)
            if prompt + most > context:
                raise too_long(
                    f"{prompt} tokens of prompt and {most} of answer exceed the context length: the memory for the KV "
                    f"cache holds {context} tokens of one sequence"
                )
        return Sequence(ask, min(most, context - prompt), self._decode, self.loaded.ends)

    def submit(self, sequence: Sequence) -> None:
        self._post(lambda: self._queue(sequence))

    def cancel(self, sequence: Sequence) -> None:
        """Frees what it holds before the next token."""
        sequence.cancelled = True
        self._post(lambda: None)

    def call(self, work: Callable[[], Result]) -> "concurrent.futures.Future[Result]":
        """Runs `work` in the model's thread, between two rounds."""
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:  # noqa: BLE001 - it is told to who asked
                    future.set_exception(error)

        self._post(run)
        return future

    def _post(self, message: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    # --- in this thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._inbox or self.waiting or self.admitted)
                self.round()
        except BaseException:
            log.exception("the model's thread broke")
            os._exit(EXIT_FAILED)  # the supervisor starts a sound one; a process without this thread would only hang

    @torch.inference_mode()
    def round(self) -> None:
        """See the module."""
        with self._wake:
            messages, self._inbox = self._inbox, deque()
        for message in messages:
            message()
        self._forget([each for each in (*self.waiting, *self.admitted) if each.cancelled])
        self._admit()
        answers = self._read_prompts()
        if self.batch.running:
            answers += self._guarded(self.batch.step, self.batch.running)
        self._forget([each for each, _ in answers if each.end is not None])
        told = [(each, news) for each, news in answers if news]
        if told:
            self._publish(told)

    def _queue(self, sequence: Sequence) -> None:
        """It was planned under a policy that may no longer hold: nobody waits for what will never fit."""
        context = self.context
        if sequence.tokens <= context:
            self.waiting.append(sequence)
        else:
            refused = too_long(f"the context length is {context} tokens under the policy that holds now")
            self._publish([(sequence, [refused])])

    def _forget(self, gone: list[Sequence]) -> None:
        if not gone:
            return
        self.batch.drop(gone)
        for queue in (self.waiting, self.prefilling):
            for each in gone:
                if each in queue:
                    queue.remove(each)
        for each in gone:
            each.cache = None

    @property
    def admitted(self) -> list[Sequence]:
        return [*self.prefilling, *self.batch.running]

    @property
    def reserved_bytes(self) -> int:
        """What all that were admitted may come to, and what measurements hold."""
        admitted = sum(each.reserved_bytes for each in self.admitted)
        return idle_bytes(self.loaded.layers, self.policy) + admitted + self.held_bytes

    def _admit(self) -> None:
        while self.waiting and len(self.admitted) < self.slots:
            cost = sequence_bytes(self.loaded.layers, self.policy, self.waiting[0].tokens)
            if self.reserved_bytes + cost > self.limit_bytes:
                return
            sequence = self.waiting.popleft()
            sequence.reserved_bytes = cost
            sequence.cache = self.loaded.cache(self.policy)
            self.prefilling.append(sequence)

    def _read_prompts(self) -> Answers:
        """One portion of the oldest prompt; with its last one the answer begins, and the sequence joins the others."""
        if not self.prefilling:
            return []
        sequence = self.prefilling[0]
        answers = self._guarded(lambda: self._read(sequence), [sequence])
        if answers and sequence.end is None and sequence in self.prefilling:
            answers += self._guarded(lambda: self._join(sequence), [sequence, *self.batch.running])
        return answers

    def _read(self, sequence: Sequence) -> Answers:
        part = sequence.ask.prompt[sequence.position : sequence.position + self._chunk]
        logits = self.loaded.step(sequence.cache, [part], [sequence.position])
        sequence.position += len(part)
        return choose([sequence], logits) if sequence.position == len(sequence.ask.prompt) else []

    def _join(self, sequence: Sequence) -> Answers:
        self.batch.join(sequence)
        self.prefilling.remove(sequence)
        return []

    def _guarded(self, work: Callable[[], Answers], concerned: list[Sequence]) -> Answers:
        """An error ends the sequences that it befell, and no others. A graphics card that has failed stays failed: it
        ends the process."""
        concerned = list(concerned)
        try:
            return work()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            log.exception("a step failed")
            refused = Refused(f"the model failed: {type(error).__name__}", status=500, code="engine_failed")
            self._forget(concerned)
            return [(each, [refused]) for each in concerned]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self.loaded.decoder.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def change(self, policy: KVPolicy) -> None:
        """Another policy, for what runs and for what comes. Raises `Refused` where that does not fit into memory, or
        changes what cannot be changed; then nothing has changed."""
        if policy.sinks != self.policy.sinks:
            raise Refused("sinks cannot change while the engine runs: set it in sekisho.yaml", param="sinks")
        layers = self.loaded.layers
        costs = [sequence_bytes(layers, policy, each.tokens) for each in self.admitted]
        if idle_bytes(layers, policy) + sum(costs) > self.limit_bytes or not most_tokens(
            layers, policy, self.limit_bytes, self.loaded.context
        ):
            raise Refused("what runs now would no longer fit into the KV cache's memory", param="budget", status=409)
        self.policy = policy
        for sequence, cost in zip(self.admitted, costs, strict=True):
            sequence.reserved_bytes = cost
        self.batch.apply(policy)
        for sequence in self.prefilling:
            sequence.cache.apply(policy)
        waiting, self.waiting = self.waiting, deque()
        for sequence in waiting:
            self._queue(sequence)

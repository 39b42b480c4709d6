"""Run the graph: each node is a job in a process of its own, as many at once as the cluster has room for.

`Execution` holds what runs and what is left. Its loop starts every node whose inputs are done and for which there is
room, waits for one to end, and notes it; of a node that fails, `_cause` finds the line to tell in its log, and all
that needs it is left out. When the trials of a sweep are done the grid is planned anew, and what it then holds more is
made too.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sbp_ray.cluster_limits import demand, is_in_process
from sbp_ray.experiment.attempts import append_attempt
from sbp_ray.experiment.checks import refuse_made
from sbp_ray.experiment.gpu_shares import VISIBLE, OwnShares, RayShares, list_gpus
from sbp_ray.experiment.grid import Grid
from sbp_ray.logs import duration
from sbp_ray.nodes import Node
from sbp_ray.plan import is_done

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_ALONE = "synthesize"  # the last batch job on a cluster stops Ray Serve: two at once would stop one another's engines


@dataclass
class _Process:
    """A job that runs."""

    node: Node
    popen: subprocess.Popen[bytes]
    log: Path
    log_start: int
    """Where in the log this attempt begins."""
    start_s: float = field(default_factory=time.monotonic)


class Execution:
    """One walk over the graph. A node that fails takes those with it that need it; the others go on."""

    def __init__(
        self,
        grid: Grid,
        *,
        run_dir: Path,
        jobs: Path,
        room: Mapping[str, float],
        environment: Mapping[str, str],
        has_ray: bool = True,
        replan: Callable[[], Grid] | None = None,
    ) -> None:
        """
        Args:
            replan: the grid as it is now that more is finished: asked when the trials of a sweep are done.
            room: CPUs and GPUs that the jobs share.
            environment: in which a job joins the same Ray.
            has_ray: without it, only those jobs run that need none.
        """
        self.grid, self._run_dir, self._jobs, self._replan = grid, run_dir, jobs, replan
        self._room, self._environment = room, environment
        self._has_ray = has_ray
        self._gpus: OwnShares | RayShares = RayShares() if has_ray else OwnShares(list_gpus(int(room.get("GPU", 0))))
        self._order = _most_needed_first(grid)
        self._running: dict[str, _Process] = {}
        self._done: set[str] = set()
        self.dead: dict[str, str] = {}
        """Why, by the key of the node that has no result: its own error, or that of one which it needs."""

    def run(self) -> None:
        """Return once no node can be run any more; on an interrupt, stop what runs first."""
        self._find_done()
        if self._done:
            logger.info(f"experiment | {len(self._done)} of {len(self.grid.nodes)} artifacts are there already")
        with self._stopped_at_the_end():
            while self._start_what_can() or self._running:
                time.sleep(_POLL_S)
                self._take_in_ended()

    def _find_done(self) -> None:
        for key, node in self.grid.nodes.items():
            if key not in self._done and is_done(node):
                self._finish(key)

    def _finish(self, key: str) -> None:
        """The node is done; what follows from it may now turn out to be impossible."""
        self._done.add(key)
        self.dead |= refuse_made(self.grid, key)

    def _go_on_with_sweeps(self, key: str) -> None:
        """Plan what follows from the losses of trials, once the last of a sweep's is there."""
        own = [sweep for sweep in self.grid.sweeps if sweep.is_open and key in (node.key for node in sweep.trials)]
        if self._replan and any(all(node.key in self._done for node in sweep.trials) for sweep in own):
            self.grid = self._replan()
            self._order = _most_needed_first(self.grid)
            self._find_done()
            for sweep in (new for new in self.grid.sweeps if new.name in {old.name for old in own}):
                logger.info(f"experiment | {sweep.name} | {sweep.progress()}")

    def _start_what_can(self) -> bool:
        """Start those first that most others wait for, else in the grid's order; whether any was started.

        One that waits for room keeps it from those after it: else small jobs would take each place that is freed, and
        one that needs two of them would start last of all.
        """
        started, is_full = False, False
        for key in self._order:
            node = self.grid.nodes[key]
            if key in self._done or key in self.dead or key in self._running:
                continue
            causes = [self.dead[need] for need in node.needs if need in self.dead]
            if causes:
                self.dead[key] = causes[0]
            elif not self._has_ray and not is_in_process(node.stage.job, node.config):
                self.dead[key] = f"{node.stage.name} needs Ray"
            elif not is_full and all(need in self._done for need in node.needs) and not self._must_wait(node):
                if self._has_room(node):
                    self._running[key] = self._start(node)
                    started = True
                else:
                    is_full = True
        return started

    def _must_wait(self, node: Node) -> bool:
        return node.stage.job == _ALONE and any(p.node.stage.job == _ALONE for p in self._running.values())

    def _has_room(self, node: Node) -> bool:
        if not self._running:
            return True  # a stage that can never fit says so itself
        jobs = [process.node for process in self._running.values()]
        held = [demand(other.stage.job, other.config) for other in jobs]
        wanted = demand(node.stage.job, node.config)
        return all(
            amount + sum(other.get(name, 0.0) for other in held) <= self._room.get(name, 0.0)
            for name, amount in wanted.items()
            if amount
        )

    def _start(self, node: Node) -> _Process:
        for folder in ("configs", "logs"):
            (self._run_dir / folder).mkdir(parents=True, exist_ok=True)
        config, log = self._run_dir / "configs" / f"{node.key}.yaml", self._run_dir / "logs" / f"{node.key}.log"
        config.write_text(yaml.safe_dump(node.config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        logger.info(f"experiment | {node.key} | {node.stage.name} starts | {log}")
        with log.open("ab") as stream:
            return _Process(
                node,
                subprocess.Popen(  # noqa: S603  our own jobs
                    [sys.executable, str(self._jobs / f"{node.stage.job}.py"), "--config", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._environment, **self._own_gpu(node)},
                    start_new_session=True,  # a Ctrl-C comes to this process alone, which passes it on
                ),
                log,
                stream.tell(),
            )

    def _own_gpu(self, node: Node) -> dict[str, str]:
        """The environment in which a job that works in its own process sees no GPU but its own."""
        if not is_in_process(node.stage.job, node.config):
            return {}
        share = demand(node.stage.job, node.config)["GPU"]
        return {VISIBLE: self._gpus.take(node.key, share)} if share else {}

    def _note(self, process: _Process, status: int) -> None:
        append_attempt(
            self._run_dir,
            artifact=process.node.key,
            seconds=time.monotonic() - process.start_s,
            status=status,
        )

    def _take_in_ended(self) -> None:
        for key, process in list(self._running.items()):
            status = process.popen.poll()
            if status is None:
                continue
            del self._running[key]
            self._gpus.give_back(key)
            self._note(process, status)
            took = duration(time.monotonic() - process.start_s)
            if status == 0:
                logger.info(f"experiment | {key} | done in {took}")
                self._finish(key)
                self._go_on_with_sweeps(key)
            else:
                self.dead[key] = f"{process.node.stage.name}: {_cause(process, status)}"
                logger.error(f"experiment | {key} | failed after {took} | {self.dead[key]}")

    @contextmanager
    def _stopped_at_the_end(self) -> Iterator[None]:
        """Interrupt the jobs that still run, as a Ctrl-C does, and wait for them."""
        # A terminal that goes away says so to this process alone: its jobs have sessions of their own.
        before = {one: signal.signal(one, _interrupt) for one in (signal.SIGTERM, signal.SIGHUP)}
        # A shell starts what it runs in the background with interrupts ignored, and so would the jobs be.
        before_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            for process in self._running.values():
                process.popen.send_signal(signal.SIGINT)
            for process in self._running.values():
                self._note(process, process.popen.wait())
            for one, handler in before.items():
                signal.signal(one, handler)
            signal.signal(signal.SIGINT, before_interrupt)


def _most_needed_first(grid: Grid) -> list[str]:
    waiting = Counter(need for node in grid.nodes.values() for need in node.ancestry())
    return sorted(grid.nodes, key=lambda key: -waiting[key])  # stable: needs still come first


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _cause(process: _Process, status: int) -> str:
    """The job's own error line, or where to look."""
    with process.log.open("rb") as stream:
        stream.seek(process.log_start)
        lines = stream.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if status == 1 and errors else f"ended with status {status}, see {process.log}"

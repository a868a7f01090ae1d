"""The models of a server: versions, swaps, rollbacks and shadows."""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.errors import LimbeckError, OptionError, nearest_name
from limbeck.files import appearing_whole
from limbeck.runtime import BundledStudent, OverlaidStudent, bundle_digest, load_bundle
from limbeck.runtime.places import is_redis
from limbeck.serving.batching import Batcher
from limbeck.serving.failures import Refusal
from limbeck.serving.log import log
from limbeck.serving.settings import Settings


class Version(NamedTuple):
    """One bundle, loaded.

    Args:
        model: Name of the model that it is a version of.
        number: ``"1"`` for the first.
        path: The bundle's folder.
        student: What answers.
        batcher: What answers new nodes together.
    """

    model: str
    number: str
    path: str
    student: BundledStudent
    batcher: Batcher


@dataclass(frozen=True)
class ModelPlan:
    """Which versions of a model there are, and what each is for.

    Args:
        paths: Folder of each version's bundle, by number.
        active: The one that answers.
        previous: The one that a rollback returns to, ``None`` for none.
        shadow: The one that answers beside, unseen, ``None`` for none.
    """

    paths: dict[str, str]
    active: str
    previous: str | None = None
    shadow: str | None = None

    def used(self) -> set[str]:
        """Numbers of the versions that are kept loaded."""
        return {n for n in (self.active, self.previous, self.shadow) if n is not None}

    def with_version(self, path: str) -> tuple[ModelPlan, str]:
        """The same with one version more, and its number."""
        number = str(max(map(int, self.paths)) + 1)
        paths = self.paths | {number: path}
        return ModelPlan(paths, self.active, self.previous, self.shadow), number


@dataclass
class _Loaded:
    """A model's plan, and the versions that it uses."""

    plan: ModelPlan
    versions: dict[str, Version] = field(default_factory=dict)


class Models:
    """The models of one worker.

    Which version answers stands in a file, the plan, which all workers of a server follow: the
    worker that is asked to swap loads the new bundle first, and then writes the plan; the others
    load it when they see that. A request keeps the version that it began with, so none fails by a
    swap.

    Args:
        settings: What the server was told.
        computing: Where large batches are computed.
        loading: Where bundles are loaded.
    """

    def __init__(self, settings: Settings, computing: Executor, loading: Executor) -> None:
        self._settings = settings
        self._computing = computing
        self._loading = loading
        self._plan_path = Path(settings.plan)
        self._stamp = 0
        self._loaded: dict[str, _Loaded] = {}

    def load(self) -> None:
        """Load what the plan says; before the first request.

        Raises:
            BundleError: A bundle or an overlay cannot be read.
        """
        with self._locked():
            if not self._plan_path.exists():
                self._write(
                    {
                        name: ModelPlan({"1": path}, "1")
                        for name, path in self._settings.bundles.items()
                    }
                )
        self._adopt()

    def names(self) -> list[str]:
        """Names of the models."""
        return list(self._loaded)

    def plan(self, name: str) -> ModelPlan:
        """Which versions of a model there are.

        Raises:
            Refusal: There is no such model.
        """
        return self._of(name).plan

    def get(self, name: str | None, number: str | None = None) -> Version:
        """A model's active version, or another one that is loaded.

        Args:
            name: The model; ``None`` for the only one.
            number: The version; ``None`` for the active one.

        Raises:
            Refusal: There is no such model or version.
        """
        if name is None:
            if len(self._loaded) != 1:
                raise Refusal(422, f"model must name one of the models {', '.join(self._loaded)}.")
            name = next(iter(self._loaded))
        loaded = self._of(name)
        version = loaded.versions.get(loaded.plan.active if number is None else number)
        if version is None:
            have = ", ".join(sorted(loaded.versions))
            raise Refusal(404, f"the model {name!r} has no version {number!r} loaded, but {have}.")
        return version

    def shadow(self, name: str) -> Version | None:
        """The version that answers beside the active one, if there is one."""
        loaded = self._of(name)
        return None if loaded.plan.shadow is None else loaded.versions.get(loaded.plan.shadow)

    def versions(self) -> list[Version]:
        """All versions that are loaded."""
        return [each for loaded in self._loaded.values() for each in loaded.versions.values()]

    # ------------------------------------------------------------ changes of the plan

    async def swap(self, name: str, path: str) -> Version:
        """Let another bundle answer; returns when it does in this worker.

        Raises:
            BundleError: The bundle cannot be read.
            Refusal: There is no such model, or the bundle has other classes.
        """

        def change(plan: ModelPlan, number: str) -> ModelPlan:
            return ModelPlan(plan.paths, number, plan.active, plan.shadow)

        return await self._bring(name, path, change)

    async def set_shadow(self, name: str, path: str | None) -> Version | None:
        """Let another bundle answer beside the active one, unseen; ``None`` ends that."""

        def change(plan: ModelPlan, number: str) -> ModelPlan:
            return ModelPlan(plan.paths, plan.active, plan.previous, number)

        if path is not None:
            return await self._bring(name, path, change)
        await self._change(
            name, lambda plan: ModelPlan(plan.paths, plan.active, plan.previous, None)
        )
        return None

    async def rollback(self, name: str) -> Version:
        """Let the version answer again that did before; a second rollback undoes it.

        Raises:
            Refusal: There is no such model, or it never had another version.
        """

        def back(plan: ModelPlan) -> ModelPlan:
            if plan.previous is None:
                raise Refusal(409, f"the model {name!r} has no version to roll back to.")
            return ModelPlan(plan.paths, plan.previous, plan.active, plan.shadow)

        await self._change(name, back)
        return self.get(name)

    async def follow(self, seconds: float = 0.25) -> None:
        """Do for ever what other workers write into the plan."""
        while True:
            await asyncio.sleep(seconds)
            if not self._is_new():
                continue
            try:
                await self._in_thread(self._adopt)
            except LimbeckError as error:  # answers as before, and tries again
                log("error", "cannot follow the plan", error=str(error))

    async def _bring(
        self, name: str, path: str, change: Callable[[ModelPlan, str], ModelPlan]
    ) -> Version:
        active = self.get(name)
        path = str(Path(path).resolve())
        # before it is planned, so that a bundle that cannot answer never is
        probe = await self._in_thread(lambda: load_bundle(path))
        probe.manifest.require_one_class("the server")
        if probe.classes != active.student.classes:
            raise Refusal(
                422,
                f"bundle {path} has other classes than the model {name!r}: serve it as another.",
            )
        warm_up(probe)
        number = ""

        def add(plan: ModelPlan) -> ModelPlan:
            nonlocal number
            plan, number = plan.with_version(path)
            return change(plan, number)

        await self._change(name, add)
        return self.get(name, number)

    async def _change(self, name: str, change: Callable[[ModelPlan], ModelPlan]) -> None:
        self._of(name)

        def locked() -> None:
            with self._locked():
                plans = self._read()
                self._write(plans | {name: change(plans[name])})
            self._adopt()

        await self._in_thread(locked)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._loading, call)

    # ------------------------------------------------------------ the plan's file

    def _of(self, name: str) -> _Loaded:
        if name not in self._loaded:
            near = nearest_name(name, self._loaded)
            hint = f"did you mean {near!r}? " if near else ""
            raise Refusal(
                404, f"there is no model {name!r}: {hint}There are {', '.join(self._loaded)}."
            )
        return self._loaded[name]

    def _is_new(self) -> bool:
        return self._plan_path.stat().st_mtime_ns != self._stamp

    def _adopt(self) -> None:
        """Load what the plan says and is not loaded, and put it in place all at once."""
        stamp = self._plan_path.stat().st_mtime_ns
        loaded = {}
        for name, plan in self._read().items():
            old = self._loaded[name].versions if name in self._loaded else {}
            versions = {
                number: old.get(number) or self._open(name, number, plan.paths[number])
                for number in sorted(plan.used())
            }
            loaded[name] = _Loaded(plan, versions)
        self._loaded, self._stamp = loaded, stamp

    def _open(self, name: str, number: str, path: str) -> Version:
        limits = self._settings.limits
        student = load_bundle(path, max_neighbors=limits.max_neighbors)
        student.manifest.require_one_class("the server")
        warm_up(student)
        if self._settings.overlay is not None:
            student = student.with_overlay(self._overlay_of(name, student))
        batcher = Batcher(
            student,
            self._computing,
            window_us=limits.window_us,
            max_batch=limits.max_batch,
            max_waiting=limits.max_waiting,
        )
        return Version(name, number, path, student, batcher)

    def _overlay_of(self, name: str, student: BundledStudent) -> str | Path:
        """Where the changes of a bundle are kept; a Redis server tells bundles apart by itself."""
        assert self._settings.overlay is not None
        if is_redis(self._settings.overlay):
            return self._settings.overlay
        digest = bundle_digest(student.manifest)[:12]
        return Path(self._settings.overlay) / f"{name}-{digest}.sqlite"

    def _read(self) -> dict[str, ModelPlan]:
        plans = json.loads(self._plan_path.read_text(encoding="utf-8"))
        return {name: ModelPlan(**fields) for name, fields in plans.items()}

    def _write(self, plans: dict[str, ModelPlan]) -> None:
        with appearing_whole(self._plan_path) as aside:
            aside.write_text(json.dumps({name: vars(plan) for name, plan in plans.items()}))

    @contextmanager
    def _locked(self) -> Any:
        """Alone among the workers."""
        with self._plan_path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def warm_up(student: BundledStudent) -> None:
    """Open a student's models and its index of ids, so that no request waits for that."""
    student.predict_logits(x=np.zeros((1, student.width), dtype=np.float32))
    if student.manifest.bands is not None:
        width = student.manifest.bands_width
        bands = np.zeros((1, width), dtype=np.float32)
        student.predict_logits(x=np.zeros((1, student.width), dtype=np.float32), bands=bands)
    if student.store.num_nodes:
        student.predict_logits(nodes=student.store.ids_of(np.array([0])))


def overlaid(version: Version) -> OverlaidStudent:
    """The student of a version whose nodes may change.

    Raises:
        Refusal: The server keeps no overlay.
    """
    if not isinstance(version.student, OverlaidStudent):
        raise Refusal(409, "this server keeps no changes: start it with --overlay.")
    return version.student


def check_overlay(path: str | None) -> None:
    """Make the overlays' folder; that of a Redis server is checked with each bundle.

    Raises:
        OptionError: It cannot be made.
    """
    if path is None or is_redis(path):
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--overlay {path} cannot be made: {error.strerror}.") from error

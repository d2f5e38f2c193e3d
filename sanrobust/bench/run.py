"""The benchmark itself: contenders in turn, case by case, files after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone

import torch

from sanrobust import allocator
from sanrobust.bench import attacks, models, operators
from sanrobust.bench.contender import Contender
from sanrobust.bench.loop import measure_loop
from sanrobust.bench.machine import Probe, make_probe, measure_limits, shortfall
from sanrobust.bench.peak import Peak, measure_peaks, too_large
from sanrobust.bench.results import FILES, Results
from sanrobust.bench.samples import Case, alternate, healthy
from sanrobust.bench.settings import (ATTACKS, COMPILED, LOOP, MEMORY, MODELS, OPERATORS, OURS,
                                      OWN, TRAINING, Settings)
from sanrobust.data.datasets import open_dataset
from sanrobust.device import choose_device, cores, environment, exact
from sanrobust.errors import UsageError
from sanrobust.files import require_writable
from sanrobust.trouble import out_of_memory

Say = Callable[[str], None]
_NOBODY = "no contender named has a way of its own to compute it, so nothing is measured"
# Who can be timed in a part; loop times a command, with no choice of contenders.
_ABLE = {OPERATORS: operators.NAMES, MODELS: models.NAMES, MEMORY: models.NAMES,
         TRAINING: models.TRAINEES, ATTACKS: attacks.NAMES}


@exact()
def run_bench(settings: Settings, *, say: Say = lambda _: None) -> Results:
    """Measure what ``settings`` ask for; files are written anew after each case.

    Raises UsageError or UnknownNameError for settings that cannot be meant, BackendError for a
    device that is not there and OutputError when the files cannot be written.
    """
    settings = _checked(settings)
    require_writable(settings.out, *FILES)
    device = torch.device(settings.shape.device)
    dtype = getattr(torch, settings.shape.dtype)
    tuning = _prepare(settings)
    limits = measure_limits(device, dtype)
    say(f"{limits.arithmetic:.0f} GFLOP/s by {limits.probe}, {limits.matmul:.0f} in matrix "
        f"products, {limits.convolution:.0f} in convolutions; copying {limits.copy:.0f} GB/s")
    warning = shortfall(limits)
    if warning:
        say(f"note: {warning}")
    results = Results(
        settings, threads=torch.get_num_threads(),
        known=max(settings.peak or 0.0, limits.arithmetic),
        facts={"started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
               "settings": asdict(settings), "environment": environment(device),
               "limits": asdict(limits), "warning": warning,
               "allocator": tuning.refusal or list(tuning.done)})
    _Bench(results, device, make_probe(device, dtype)[1], say).run()
    if not any((results.samples, results.peaks, results.efforts, results.loops, results.refused)):
        raise UsageError(f"{' or '.join(settings.models)} must have a contender that computes it "
                         "in a way of its own",
                         seen=f"{', '.join(settings.contenders)} has none", hint=f"add -c {OURS}")
    return results


def _prepare(settings: Settings) -> allocator.Tuning:
    """Set up the threads, the memory and, faster than an evaluation may, the convolutions."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    # No contender is held back: exact repetition is not what is measured here.
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True
    return allocator.tune()


def _checked(settings: Settings) -> Settings:
    """Return the settings with the device spelled out."""
    device = choose_device(settings.shape.device)
    if device.type == "cpu" and settings.shape.dtype != "float32":
        raise UsageError("--dtype must be float32 on a CPU", seen=f"it is {settings.shape.dtype}",
                         hint="leave it out, or add --device cuda")
    most = cores()
    if settings.threads is not None and settings.threads > most:
        raise UsageError("--threads must be at most the cores of this process",
                         seen=f"it is {settings.threads} of {most}",
                         hint=f"type --threads {most}")
    _check_contenders(settings)
    if ATTACKS in settings.parts:
        attacks.check(settings)
    if LOOP in settings.parts:
        _check_loop(settings)
    settings = replace(settings, shape=replace(settings.shape, device=str(device)))
    for name in settings.contenders:
        if OWN in name:
            models.find_formulation(name)
    if {MODELS, MEMORY, TRAINING} & set(settings.parts):
        models.check(settings.models, settings.shape)
    return settings


def _check_contenders(settings: Settings) -> None:
    """Refuse a part in which nobody would be timed, and who would be timed in no part."""
    parts = [part for part in settings.parts if part in _ABLE]
    for part in parts:
        if not any(_takes_part(name, part) for name in settings.contenders):
            raise UsageError(f"a contender of {part} must be one of {', '.join(_ABLE[part])}",
                             seen=f"only {', '.join(settings.contenders)} was named",
                             hint=f"add -c {_ABLE[part][0]}")
    for name in settings.contenders:
        if (name == COMPILED or OWN in name) and not any(_takes_part(name, part)
                                                         for part in parts):
            option = "--compile" if name == COMPILED else "--formulation"
            raise UsageError(f"{option} must have models or memory to take part in",
                             seen=f"only {' '.join(settings.parts)} is measured",
                             hint="add models")


def _takes_part(name: str, part: str) -> bool:
    return name in _ABLE[part] or OWN in name and part in (MODELS, MEMORY)


def _check_loop(settings: Settings) -> None:
    if settings.shape.dtype != "float32":
        raise UsageError("--dtype must be float32 where whole commands are timed",
                         seen=f"it is {settings.shape.dtype}", hint="leave it out")
    models.check(settings.loop.models, settings.shape)
    if settings.loop.data is not None:
        open_dataset(settings.loop.data, root=None, num_samples=settings.loop.images)


class _Bench:
    """One run over its cases."""

    def __init__(self, results: Results, device: torch.device, probe: Probe, say: Say) -> None:
        self._results = results
        self._settings = results.settings
        self._device = device
        self._probe = probe
        self._say = say

    def run(self) -> None:
        """Measure every part that was asked for."""
        for part, measure in ((OPERATORS, self._operators), (MODELS, self._all_models),
                              (MEMORY, self._memory), (TRAINING, self._trainings),
                              (ATTACKS, self._attacks), (LOOP, self._loops)):
            if part in self._settings.parts:
                measure()

    def _operators(self) -> None:
        for operator in operators.operators(self._settings.shape):
            contenders = operators.contenders(operator, self._settings.contenders)
            self._race("operator", operator.name, contenders)

    def _all_models(self) -> None:
        for model in self._settings.models:
            self._race("model", model, self._models(model, training=False))

    def _memory(self) -> None:
        for model in self._settings.models:
            self._peaks(model, measure_peaks(self._settings, model))

    def _trainings(self) -> None:
        """Time a training step of each model, and measure its memory."""
        for model in self._settings.models:
            self._race("model", model, self._models(model, training=True))
            self._peaks(model, measure_peaks(self._settings, model, training=True))

    def _peaks(self, model: str, peaks: Iterable[Peak]) -> None:
        seen = len(self._results.peaks)
        for peak in peaks:
            self._results.peaks.append(peak)
            self._results.computed_by.setdefault((model, peak.contender), peak.computed_by)
            self._say(f"{model} {peak.case.step}, {peak.contender}: "
                      + (peak.failure or f"{(peak.net or 0) / 1e9:.2f} GB"))
        if len(self._results.peaks) == seen:
            self._say(f"{model}: {_NOBODY}")
        self._results.write()

    def _attacks(self) -> None:
        for model in self._settings.threat.models:
            self._attack(model)

    def _loops(self) -> None:
        for model in self._settings.loop.models:
            for experiment in self._settings.loop.experiments:
                self._loop(model, experiment)

    def _loop(self, model: str, experiment: str) -> None:
        """Run a whole command once, and its model alone."""
        loop = measure_loop(model, experiment, self._settings)
        self._results.loops[Case("loop", model, experiment, loop.images)] = loop
        self._say(f"{model} {experiment}: {loop.images_per_second:.3g} images/s, bare "
                  f"{loop.bare_images_per_second:.3g}, {100 * loop.model_share:.1f} % of the wall "
                  f"time in the model ({loop.computed_by})")
        self._results.write()

    def _attack(self, model: str) -> None:
        """Attack a network by every side: once counted, then in turn against the clock."""
        place = attacks.arena(model, self._settings)
        sides = list(attacks.attackers(place, self._settings.contenders))
        self._results.computed_by.update({(model, each.name): each.computed_by for each in sides})
        for step in self._settings.threat.attacks:
            case = Case("attack", model, step, self._settings.threat.images)
            for each in sides:
                effort = each.effort(step)
                self._results.efforts[case, each.name] = effort
                self._say(f"{model} {step}, {each.name}: {effort.seconds:.3g} s, "
                          f"{100 * effort.model_share:.0f} % of it in the network, "
                          f"{effort.robust:.1f} % robust")
            self._results.write()  # timed samples may take long
            self._case(case, sides)
            self._results.write()

    def _models(self, name: str, *, training: bool) -> Iterator[Contender]:
        shape = self._settings.shape
        return models.contenders(self._settings.contenders, models.load(name, shape), shape,
                                 training=training)

    def _race(self, kind: str, name: str, contenders: Iterable[Contender]) -> None:
        present = list(contenders)
        if not present:
            self._say(f"{name}: {_NOBODY}")
        for each in present:
            self._results.computed_by.setdefault((name, each.name), each.computed_by)
        for step in dict.fromkeys(step for each in present for step in each.calls):
            self._case(Case(kind, name, step, self._settings.shape.batch_size), present)
            self._results.write()

    def _case(self, case: Case, contenders: Sequence[Contender]) -> None:
        timers = {}
        for each in contenders:
            timer = self._timer(case, each)
            if timer is not None:
                timers[each.name] = timer
        samples = alternate(case, timers, self._probe, repeats=self._settings.repeats,
                            known=self._results.best)
        self._results.samples += samples
        rejected = sum(not healthy(sample, self._results.best) for sample in samples)
        self._say(f"{case.name} {case.step}: {len(samples)} samples"
                  + (f", {rejected} rejected" if rejected else "")
                  + (", so there is no figure" if rejected == len(samples) else ""))

    def _timer(self, case: Case, contender: Contender) -> Callable[[], float] | None:
        reason = too_large(contender, case.step, self._settings.shape)
        if reason is None:
            try:
                return contender.timer(case.step, self._device)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = "it does not fit into memory"
        self._results.refused[case, contender.name] = reason
        self._say(f"{case.name} {case.step}, {contender.name}: not timed, {reason}")
        return None

"""A run: one data set brought through the stages into one folder, which does what its plan says and nothing twice.

    prototypes  text prototypes, regions of every image, vision prototypes      regions/ prototypes.safetensors
    seeds       label maps of text, vision and refined seeds                    seeds/{text,vision,refined}/*.png
    labels      the same, after the CRF, and pseudo-masks                       seeds/crf/*.png labels/*.png
    train       the network, from the pseudo-masks                              network/
    evaluate    masks and network against the truth                             metrics.json predictions/*.png

`plan` compares what is asked with what is there, `bring` does the work; later rooms add their stages as `makers`. Each
stage is a module: `learning`, `labelling`, `teaching`, `scoring`; what they need of the run is `opened`'s, the folder
itself, its lock and its record `folder`'s, its files `files`'s; `stream` is the way of the photographs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from vpl.edges.datasets import Sample
from vpl.errors import DataError, RunError
from vpl.method.labeller import Labeller
from vpl.network import team
from vpl.runs import checks, inventory, labelling, learning, scoring, teaching
from vpl.runs.files import read_json
from vpl.runs.folder import log
from vpl.runs.opened import Opened
from vpl.runs.plan import EXPORTS, STAGES, WHOLE, Plan, Work
from vpl.runs.records import read_evaluations

TIMED = {"scores": "evaluate masks", "signs": "signs", "report": "report"} | {to: f"export {to}" for to in EXPORTS}
"""Stages whose time is noted here -> their names in run.json; the others note theirs with its parts."""


class Run(Opened):
    """A data set's way through the stages. A context manager: leaving it lets the run folder go.

    What the configuration changes is made anew, with what follows from it. For the arguments see `Opened`.
    """

    def bring(self, *targets: str, never: Iterable[str] = (), tell: Callable[[Plan], None] | None = None) -> Plan:
        """Do what the plan says, stage after stage; returns the plan.

        Args:
            tell: is given the plan before anything is done.
        """
        never = tuple(never)
        first = plan = self.plan(targets, never)
        self.check(plan)
        if tell is not None:
            tell(plan)
        self.settle()
        self._tidy(plan)
        own: dict[str, Callable[[Plan, Work], None]] = {
            "prototypes": partial(learning.make, self),
            "maps": partial(labelling.make, self, pseudo="masks" in plan.stages),
            "masks": partial(labelling.make, self, pseudo=True),
            "network": partial(teaching.make, self),
            "scores": partial(scoring.make, self),
            "network scores": partial(scoring.make_network, self),
        }
        if "scores" in plan.stages:
            self.note(unscored=self.unscored)
        if self.unscored:
            self.state.strike("scores")
            self.drop_evaluation(held_out=False)
        for stage in STAGES:
            work = plan.of(stage)
            if work is None or stage == "regions" or (stage == "scores" and self.unscored):
                continue
            self.state.remember(plan.settings)
            start = time.perf_counter()
            if stage in own:
                self._make(own[stage], plan, work)
            else:
                with self.state.making(stage, work.wanted[WHOLE]):
                    self.makers[stage](self)
            if stage in TIMED:
                self.note_stage(TIMED[stage], time.perf_counter() - start, len(self.usable(plan)))
            self.note_failures()
            plan = self.plan(targets, never)  # photographs may have failed
        if self.leads:
            self._set_aside_unasked(plan)
        self._drop_outdated(plan)
        self._note_untimed(plan)
        return first

    def _make(self, make: Callable[[Plan, Work], None], plan: Plan, work: Work) -> None:
        """One stage. Scores that turn out to mean nothing are left out of a run that is more than scores."""
        try:
            make(plan, work)
        except DataError as error:
            if work.stage != "scores" or "report" not in plan.stages:
                raise
            self.unscored = str(error)
            self.note(unscored=self.unscored)
            log.warning("there are no scores: %s", error)

    def _drop_outdated(self, plan: Plan) -> None:
        """Take scores of other label maps, or of another network, than those that are there now out of metrics.json."""
        network = self.state.records.get("network", {}).get(WHOLE)
        for one in read_evaluations(self.folder) if self.leads else ():
            held_out, of = bool(one.get("held_out")), {row.get("of") for row in one["rows"]}
            known = {network} if held_out else {plan.fingerprints.get(stage) for stage in ("maps", "masks")}
            if not of <= known | {None} and (held_out or {"maps", "masks"} <= plan.fingerprints.keys()):
                self.state.strike("network scores" if held_out else "scores")
                self.drop_evaluation(held_out=held_out)

    def _note_untimed(self, plan: Plan) -> None:
        """Stages that a kill ended between their last product and the note of their time."""
        if not self.leads:
            return
        noted, usable = self.record().get("stages", {}), len(self.usable(plan))
        words = TIMED | {"prototypes": "prototypes", "masks": "pseudo-masks", "network": "train"}
        words |= {"network scores": "evaluate network"} | ({} if "masks" in plan.stages else {"maps": "seeds"})
        for stage, name in words.items():
            if stage in plan.stages and stage in self.state.records and name not in noted:
                self.note_stage(name, 0.0, len(self.held_out) if stage == "network scores" else usable)

    def check(self, plan: Plan) -> None:
        """Everything that can be wrong, before the first photograph is encoded."""
        stages = {work.stage for work in plan.work}
        if "scores" in plan.stages or self.config.data.masks:
            self.unscored = self._unscored(plan)
        if "network scores" in stages or (stages and self.config.validation.masks):
            scored = "network scores" in plan.stages
            checks.check_truth(self.validation, self.config.validation, self.classes, scored=scored)
        if stages:
            checks.check_settings(self.config, stages, self.clip, self.classes)
        maps = plan.of("maps")
        if maps is not None:
            checks.check_lengths(self.folder, list(maps.wanted))
            checks.warn_of_little_room(self.folder, len(maps.wanted))

    def _unscored(self, plan: Plan) -> str:
        """Why there can be no scores; "" where there can. What needs no truth is made all the same.

        Raises:
            DataError: the same, where scores are all that was asked for, or where no mask is there.
        """
        scored = "scores" in plan.stages
        try:
            checks.check_truth(self.dataset.samples, self.config.data, self.classes, scored=scored)
        except DataError as error:
            if "report" not in plan.stages or isinstance(error, checks.MissingTruth):
                raise
            log.warning("there will be no scores: %s", error)
            return str(error)
        return ""

    def _tidy(self, plan: Plan) -> None:
        """Forget failures of photographs that have changed; set aside what is no longer asked for."""
        failed = set(plan.failed)
        for identity in [one for one in self.state.failed if one not in failed]:
            self.state.mend(identity)
            self.failures.pop(identity, None)
        self._set_aside_unasked(plan)
        for stage in plan.dropped:
            if stage == "network":
                teaching.set_aside(self)
            else:
                self.state.strike(stage)
                self.drop_evaluation(held_out=stage != "scores")
                if stage == "network scores":
                    self.set_aside(self.folder / "predictions")
        if "network" in plan.stages and plan.of("network") is None and self.has_network:
            scoring.refresh_card(self)

    def _set_aside_unasked(self, plan: Plan) -> None:
        """Set aside what was made of photographs that are no longer listed or can't be used, and regions of those that
        have no tags any more."""
        usable = self.usable(plan)
        for stage, records in list(self.state.records.items()):
            if stage not in STAGES or not STAGES[stage].each:
                continue
            asked = {one.id for one in usable if one.tags or stage != "regions"}
            for identity in [one for one in records if one not in asked]:
                for place, suffix in inventory.places_of(self.folder, stage, self.config):
                    self.set_aside(place / f"{identity}{suffix}")
                self.state.move(stage, identity, identity, back=False)

    def prototypes(self) -> None:
        """Text prototypes, region embeddings and vision prototypes into prototypes.safetensors (METHOD.md 0 and 3)."""
        self.bring("prototypes")

    def ready(self) -> None:
        """What label maps need: text prototypes, and vision prototypes where those make the seeds."""
        self.bring("masks", never=["maps", "masks"])

    def seeds(self) -> None:
        """Label maps of text, vision and refined seeds."""
        self.bring("maps")

    def labels(self) -> None:
        """Label maps of all seeds, and the pseudo-masks."""
        self.bring("masks")

    def labeller(self) -> Labeller:
        """What makes label maps from the run's prototypes, on the run's device.

        Raises:
            RunError: the prototypes are damaged, or come from a run of other classes or another CLIP.
        """
        return labelling.labeller(self)

    def map_folders(self, pseudo: bool) -> dict[str, Path]:
        """Name of each label map that `labeller` makes -> the folder that holds it."""
        return labelling.map_folders(self, pseudo)

    @contextlib.contextmanager
    def handed_out(self) -> Iterator[list[Sample]]:
        """The samples whose label maps others make inside the block, into `map_folders`; those that are whole are noted
        when it ends. Where it was left before its end, files of the same plan count when it is begun again."""
        self.ready()
        plan = self.plan(["masks"])
        self.settle()
        self._tidy(plan)
        self.state.remember(plan.settings)
        if plan.of("masks") is None:
            yield []
            return
        mark = plan.fingerprints["masks"]
        if self.state.records.get("handed out", {}).get(WHOLE) != mark:
            for work in plan.work:
                for identity in work.wanted:
                    self.state.strike(work.stage, identity)
                    for place, suffix in inventory.places_of(self.folder, work.stage, self.config):
                        (place / f"{identity}{suffix}").unlink(missing_ok=True)
            with self.state.making("handed out", mark):
                pass
        self._note_whole(plan)
        left = self.plan(["masks"]).of("masks")
        try:
            yield [sample for sample in self.dataset.samples if left is not None and sample.id in left.wanted]
        finally:
            self._note_whole(plan)
        self.state.strike("handed out")
        self.note_failures()

    def _note_whole(self, plan: Plan) -> None:
        """Write down products of the plan that others made."""
        for work in plan.work:
            there = inventory.files_there(self.folder, work.stage, self.config)
            for identity, fingerprint in work.wanted.items():
                known = self.state.records.get(work.stage, {}).get(identity) == fingerprint
                if not known and identity in there:
                    with self.state.making(work.stage, fingerprint, identity):
                        pass

    def train(self) -> None:
        """The network of METHOD.md 5 from the pseudo-masks, into network/; pseudo-masks that are missing come first."""
        if self.place.count == 1:
            self.bring("network")
            return
        together = team.Team(self.clip.device)
        plan = self.plan(["network"])
        if missing := [work.stage for work in plan.work if work.stage != "network"]:
            what, command = (
                ("vision prototypes", "prototypes") if missing == ["prototypes"] else ("pseudo-masks", "labels")
            )
            raise RunError(f"the {what} of {self.folder} are not up to date; run `vpl {command}` first.")
        together.wait()  # every process has read the state before the first one changes it
        if self.leads:
            self.settle()
            self.state.remember(plan.settings)
            for work in plan.work:
                teaching.make_way(self, work)
        together.wait()
        for work in plan.work:
            teaching.make(self, plan, work)

    def evaluate(self) -> dict:
        """Masks and network against the truth masks, into metrics.json (METHOD.md 6). Returns its content.

        Seeds and pseudo-masks are evaluated on the images of [data], the network on the held-out images of
        [validation], by both protocols side by side. Pseudo-masks that are missing come first; a network is not
        trained.

        Raises:
            RunError: there are no truth masks.
        """
        self.check_scored()
        self.bring("scores", "network scores", never=["network"])
        return read_json(self.folder / "metrics.json")

    def check_scored(self) -> None:
        """Refuse to evaluate where there is nothing to compare with.

        Raises:
            RunError: there are no truth masks.
        """
        truths = any(sample.mask is not None for sample in (*self.dataset.samples, *self.held_out))
        if not (truths or self.config.data.masks or self.config.validation.masks):
            raise RunError(
                "the data have no truth masks; evaluation needs data.masks (--masks DIR). The masks are made without "
                "them."
            )

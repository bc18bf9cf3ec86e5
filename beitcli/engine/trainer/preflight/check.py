"""The preflight of a training command: everything that is known, or seen in a second or two, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from beitcli.config.common import Training
from beitcli.data.sources.base import Source
from beitcli.engine.events import OnEvent
from beitcli.engine.trainer.preflight.amount import refusals
from beitcli.engine.trainer.preflight.empty_folders import empty_folder_findings
from beitcli.engine.trainer.preflight.findings import Finding, tell
from beitcli.engine.trainer.preflight.looked_at import image_findings, look
from beitcli.engine.trainer.preflight.overlap import overlap_findings
from beitcli.engine.trainer.preflight.schedule import class_findings, measuring_findings, schedule_findings
from beitcli.engine.trainer.setup import planned_steps
from beitcli.escaping import shell_line
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.storage.checkpoint import newest_checkpoint

_DOCTOR = ("beit", "doctor", "DATA")
_LONGEST = 120  # characters of a command in a finding


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What is known of a training before its first step.

    Attributes:
        measured: Images to measure on.
        is_apart: Whether they are none of the training images.
        size: Shorter side of the images that the model takes, in pixels.
        from_scratch: Whether the model starts from random weights.
        labelled: Whether the images' classes are learned.
        others: Findings of the task's own; taken once, on rank 0.
    """

    config: Training
    training: Source
    measured: Source
    is_apart: bool
    size: int
    from_scratch: bool
    labelled: bool = False
    others: Iterable[Finding] = ()

    def findings(self) -> Iterator[Finding]:
        """Yields all findings, those about numbers first; of a training that is refused, why and about its images."""
        config, command, images = self.config, self.config.command, len(self.training)
        refused = list(refusals(command, self.training, labelled=self.labelled))
        if refused:
            yield from refused
            yield from image_findings(look(self.training), self.size, from_scratch=False)  # their size is no matter
            return
        steps, given = planned_steps(config, images), config.steps is not None
        yield from schedule_findings(command, images, config.batch_size, steps, steps_given=given)
        yield from measuring_findings(command, len(self.measured), self.is_apart, getattr(config, "val", None))
        yield from self.others
        if self.labelled:
            yield from class_findings(self.training)
            yield from empty_folder_findings(self.training)
        yield from image_findings(look(self.training), self.size, from_scratch=self.from_scratch)
        if self.is_apart:
            yield from overlap_findings(self.training, self.measured)

    def run(self, world: DistributedContext, on_event: OnEvent) -> list[dict[str, Any]]:
        """Tells all findings, and returns them as documents; none of a run that goes on: it was told them.

        Rank 0 looks for all.

        Raises:
            DataError: Nothing can come of the training.
        """
        config = self.config
        if config.resume and world.run_on_rank_zero(lambda: newest_checkpoint(Path(config.out)) is not None):
            return []
        found = world.run_on_rank_zero(lambda: [self._with_data(each) for each in self.findings()])
        tell(found, on_event)
        return [asdict(each) for each in found]

    def _with_data(self, finding: Finding) -> Finding:
        """Names the run's own DATA in the command that a finding proposes, unless it is long."""
        command = shell_line([*_DOCTOR[:-1], *self.config.data])
        if "-" in self.config.data or len(command) > _LONGEST:
            return finding
        return replace(finding, way_out=finding.way_out.replace(" ".join(_DOCTOR), command))

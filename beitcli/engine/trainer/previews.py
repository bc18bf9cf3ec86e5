"""RUN/previews/step-N.png: what the model makes of the same held-out images at each save.

Drawn on rank 0, with the model in evaluation mode and whole, as evaluation has it; nothing draws from a random
generator, so the run is the same with and without.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from beitcli.engine.events import Note, OnEvent, Warned
from beitcli.engine.report.record import preview_files
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.storage.own_files import atomic_write, remove_entry
from beitcli.runtime.storage.run_dir import PREVIEWS, RunFolder

_MOST = 100  # previews of a run; one that saves more often draws at every second, third, ... save


class PreviewWriter:
    """Draws and writes the previews of one run.

    Args:
        images: Held-out images in a preview; 0 for none.
        step: The step that the run goes on from; previews after it are removed.
    """

    def __init__(
        self, task: Task, run: RunFolder, plan: Plan, images: int, step: int, world: DistributedContext
    ) -> None:
        self.task, self.plan, self.images = task, plan, images if world.is_rank_zero else 0
        self.folder = run.path / PREVIEWS
        self.every = -(-(plan.steps // plan.save_every + 1) // _MOST)
        with suppress(OSError):  # on rank 0 alone: an error here would leave the others waiting
            for name, drawn in preview_files(self.folder) if world.is_rank_zero else ():
                if drawn > step:
                    remove_entry(name)

    def draw(self, step: int, on_event: OnEvent) -> Path | None:
        """Returns the file of this step; None if none is due or none can be drawn, which is told once."""
        due = step == self.plan.steps or (step // self.plan.save_every) % self.every == 0
        if not self.images or not due:
            return None
        try:
            picture = self.task.preview(self.images)
            if picture is None:
                on_event(Note(f"{self.task.name}: no previews; there is nothing that it could draw."))
                self.images = 0
                return None
            self.folder.mkdir(exist_ok=True)
            if self.folder.is_symlink():
                raise OSError(f"'{self.folder}' is a link, which is not followed")
            file = self.folder / f"step-{step:07d}.png"
            atomic_write(file, partial(picture.save, format="PNG"))
        except Exception as error:  # of less worth than the run, on whose other ranks nothing fails
            on_event(Warned(f"No more previews are drawn: {error or type(error).__name__}"))
            self.images = 0
            return None
        return file

"""One thread that owns the engine: requests join what is under way, and leave as soon as they are ranked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from r1ranker.errors import UserError, first_line
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.schedule import OpenConversations
from r1ranker.tasks.example import RankingExample

MOST_ASKED = 16
"""questions of one request that the engine holds at a time, so that a large one does not fill it"""
IDLE_S = 0.5
"""how long the thread waits for work before it looks whether it is to end"""
OnProgress = Callable[[RankingResult, int], None]
"""called in the scheduler's thread whenever candidates have gone out, with how many had at the last call"""


class EngineDead(Exception):
    """The engine has failed; nothing can be ranked any more."""


@dataclass
class Job:
    """A request to be ranked."""

    example: RankingExample
    ranker: Ranker
    """the same engine's as the scheduler's; it may have other settings"""
    on_progress: OnProgress | None = None
    future: Future[RankingResult] = field(default_factory=Future)
    progress: RankingResult = field(default_factory=RankingResult)
    told: int = 0
    """candidates that `on_progress` has been called with"""
    is_cancelled: bool = False


class Scheduler:
    """Ranks requests of many threads over one engine."""

    def __init__(self, ranker: Ranker, on_death: Callable[[], None] = lambda: None) -> None:
        """`on_death` is called once, in the scheduler's thread, where the engine fails."""
        self._ranker, self.on_death = ranker, on_death
        self._new: queue.Queue[Job | None] = queue.Queue()
        self._jobs: dict[int, Job] = {}
        self._places = 0
        self._is_ending = False
        self.death: str | None = None
        """what the engine failed with"""
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to take work."""
        self._thread.start()

    def submit(
        self,
        example: RankingExample,
        ranker: Ranker | None = None,
        on_progress: OnProgress | None = None,
    ) -> Job:
        """Have an example ranked; its result, or what ended it, comes into the job's future."""
        job = Job(example, ranker or self._ranker, on_progress)
        self._new.put(job)
        if self.death is not None:  # it may have died between the two lines, and then nobody takes the job
            self._refuse()
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job's result any more: what the engine holds of it is dropped."""
        job.is_cancelled = True
        self._new.put(None)  # wakes the thread

    def stop(self, timeout: float) -> bool:
        """Finish what is under way, and end; whether that took less than `timeout` seconds."""
        self._is_ending = True
        self._new.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            underway = OpenConversations(self._ranker.engine.session(fair=True), MOST_ASKED)
            while not (self._is_ending and not self._jobs and self._new.empty()):
                self._take(underway)
                for place in [place for place, job in self._jobs.items() if job.is_cancelled]:
                    underway.cancel(place)
                    self._jobs.pop(place).future.cancel()
                ended = underway.step(once=True)
                for job in self._jobs.values():
                    self._tell(job)
                for place, outcome in ended:
                    self._end(place, outcome)
        except Exception as error:  # whatever an engine raises, everybody who waits has to hear of it
            self.death = f"{type(error).__name__}: {first_line(error, 300)}"
            for place in list(self._jobs):
                self._end(place, EngineDead(self.death))
            self._refuse()
            self.on_death()

    def _take(self, underway: OpenConversations) -> None:
        """Begin what has come; waits a while where there is nothing to do."""
        wait = not len(underway)
        while True:
            try:
                job = self._new.get(timeout=IDLE_S) if wait else self._new.get_nowait()
            except queue.Empty:
                return
            wait = False
            if job is None or job.is_cancelled:
                continue
            place, self._places = self._places, self._places + 1
            self._jobs[place] = job
            try:
                result = underway.begin(place, job.ranker.conversation(job.example, job.progress), job.ranker.asker)
            except UserError as error:
                self._end(place, error)
            else:
                if result is not None:
                    self._end(place, result)

    def _tell(self, job: Job) -> None:
        out = len(job.progress.out_in_round)
        if job.on_progress is not None and out > job.told:
            job.on_progress(job.progress, job.told)
            job.told = out

    def _end(self, place: int, outcome: RankingResult | Exception) -> None:
        future = self._jobs.pop(place).future
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _refuse(self) -> None:
        """Those that came after the engine's death hear of it too."""
        while True:
            try:
                job = self._new.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(EngineDead(self.death))

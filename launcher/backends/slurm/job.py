"""Which job of which cluster a run is: where commands reach several clusters, each numbers its own jobs. Pure."""

from dataclasses import dataclass

from launcher.runs.record import Run


@dataclass(frozen=True)
class SlurmJob:
    """A job's number, and its cluster where there are several."""

    number: str
    cluster: str | None = None

    @property
    def place(self) -> dict[str, str]:
        """The part of Run.place that finds it."""
        return {"job_id": self.number, **({"slurm_cluster": self.cluster} if self.cluster else {})}

    def command(self, name: str, *words: str) -> list[str]:
        """One of Slurm's commands, to the job's own cluster."""
        return [name, *([f"--clusters={self.cluster}"] if self.cluster else []), *words]


def job_of(run: Run) -> SlurmJob | None:
    """The job that a record names; None when its submit was killed before it was known."""
    number = run.place.get("job_id")
    return SlurmJob(number, run.place.get("slurm_cluster")) if number else None


def printed_job(text: str) -> SlurmJob:
    """What `sbatch --parsable` prints, last: `JOBID` or `JOBID;CLUSTER`."""
    number, _, cluster = text.strip().splitlines()[-1].partition(";")
    return SlurmJob(number, cluster or None)


def queued_job(listing: str, comment: str) -> SlurmJob | None:
    """The job with this comment among lines `JOBID COMMENT` of squeue; where it asked several clusters, a line
    `CLUSTER: NAME` stands before those of each."""
    cluster = None
    for line in listing.splitlines():
        number, _, words = line.strip().partition(" ")
        if number == "CLUSTER:":
            cluster = words.strip()
        elif words == comment:
            return SlurmJob(number, cluster)
    return None

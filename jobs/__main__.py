"""All jobs with a line each, or one of them: `python -m jobs make-pairs` and `hive-ray make-pairs` are
`python -m jobs.make_pairs`."""

import sys

from hive_ray.choices import choose_one_of
from jobs.command import JOBS, WRONG_USAGE, list_jobs, run_job


def main(program: str = "hive-ray") -> None:
    """The console command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(list_jobs(program))
        return
    name = arguments[0].replace("-", "_")
    if name not in JOBS:
        known = [job.replace("_", "-") for job in JOBS]
        said = choose_one_of(known, name.replace("_", "-"))
        print(f"{program}: there is no job {arguments[0]!r}; {said}", file=sys.stderr)
        raise SystemExit(WRONG_USAGE)
    run_job(name, arguments[1:], f"{program} {arguments[0]}")


if __name__ == "__main__":
    main("python -m jobs")

"""Submits a job to a running Ray cluster, follows its log to the end and ends with its exit status.

python jobs/submit.py pipeline EXPERIMENT [--set dotted.key=value ...]

As `ray job submit --runtime-env runtime_env.yaml --working-dir .`, which however ends with 0 also for a job that was
stopped, or when its connection to the log breaks. Ends here: 0 succeeded, 130 stopped, 2 the cluster cannot be reached
or refuses, else the job's own status. The cluster's address is RAY_API_SERVER_ADDRESS, the token RAY_AUTH_TOKEN_PATH.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

import yaml

from lakd_ray.errors import LakdError
from lakd_ray.submit import connect, submit_job, tail_until_done

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Entry point; returns the exit status."""
    jobs = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "submit")
    parser = argparse.ArgumentParser(description="Submit a job, follow its log, end with its exit status.")
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    parser.add_argument(
        "--wait", type=float, default=60.0, metavar="S", help="how long the cluster may be out of reach"
    )
    parser.add_argument("job", choices=jobs, help="script in jobs/")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script takes")
    options = parser.parse_args()
    entrypoint = shlex.join(["python", f"jobs/{options.job}.py", *options.arguments])
    runtime_env = yaml.safe_load((ROOT / "runtime_env.yaml").read_text(encoding="utf-8"))
    job = None
    try:
        client = connect(options.address, options.wait)
        job = submit_job(client, entrypoint, {**runtime_env, "working_dir": str(ROOT)})
        print(
            f"submitted {job} to {options.address}; Ctrl-C leaves it running, `ray job stop {job}` ends it", flush=True
        )
        return tail_until_done(client, job, options.wait)
    except LakdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        went_on = f"the job goes on, `ray job logs --follow {job}` shows it" if job else "nothing was submitted"
        print(f"\ninterrupted; {went_on}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

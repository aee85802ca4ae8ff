"""The environment that every back end gives to a job. Pure."""

from launcher.job.plan import Plan
from launcher.job.profile import CONTAINER_CODE

DEFAULT_PORT = 29500


def launch_env(plan: Plan) -> dict[str, str]:
    """What launch sets, the same on every node."""
    return {
        **plan.payload.env,
        "LAUNCH_RUN_ID": plan.run_id,
        "LAUNCH_JOB_NAME": plan.name,
        "LAUNCH_NODES": str(plan.nodes),
        "LAUNCH_GPUS_PER_NODE": str(plan.gpus_per_node),
        "LAUNCH_PROCESSES_PER_NODE": str(plan.processes_per_node),
        "LAUNCH_GRACE_S": str(plan.grace_s),
        "PYTHONUNBUFFERED": "1",
        "NCCL_DEBUG": "WARN",
    }


def job_env(plan: Plan) -> dict[str, str]:
    """All of it. The user's own `env` comes last, so it wins."""
    return {**launch_env(plan), **plan.env}


def container_python_path(plan: Plan) -> str:
    """PYTHONPATH in a container that has the job's code: the code, then what the job's `env` says."""
    return ":".join(filter(None, [CONTAINER_CODE, plan.env.get("PYTHONPATH")]))

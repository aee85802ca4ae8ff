"""launch list."""

import click

from launcher.services.ends import states_of
from launcher.services.options import json_option, run_store
from launcher.terminal import ui


@click.command("list")
@json_option
def command(json_output: bool) -> None:
    """The newest last. A cluster that cannot be asked shows its runs as unknown."""
    store = run_store()
    for run_id, why in store.damaged().items():
        ui.warn(f"{store.folder(run_id)}/run.json: {why}")
    runs = store.all()
    states = states_of(store, runs)
    rows = [(run, states[run.run_id]) for run in runs]
    if json_output:
        for run, state in rows:
            ui.as_json({"run": run.run_id, "handle": run.handle, "state": state, "created": run.created,
                        "nodes": run.nodes})
    else:
        ui.print_table(["RUN", "STATE", "NODES", "CREATED", "HANDLE"],
                       [[run.run_id, state, str(run.nodes), f"{run.created[:19]}Z", run.handle] for run, state in rows])

"""Projects and runs' models: whoever asks first makes them, and all others find them."""

import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub.server.commits import new_public_id
from ddphub.server.database import insert, locked
from ddphub.server.tables import Model, Project


def project_named(session: Session, name: str) -> Project:
    """The project with this name, made if there is none.

    Args:
        session: a write session.
        name: a checked name.
    """
    wanted = select(Project).where(Project.name == name)
    project = session.scalar(wanted)
    if project is None:
        row = {"public_id": new_public_id(), "name": name, "created_at": time.time()}
        # Waits for whoever makes the same one at this moment.
        session.execute(insert(Project).values(row).on_conflict_do_nothing())
        project = session.scalars(wanted).one()
    return project


def model_of_run(
    session: Session, project: Project, run_id: str | None, *, name: str, request: str
) -> tuple[Model, bool]:
    """The model of a run, made if there is none; its row is locked.

    Args:
        session: a write session.
        project: the run's project.
        run_id: the run; None makes a model that no repeat finds.
        name: a new model's name.
        request: the JSON that a new model is created with.

    Returns:
        The model, and whether it is new.
    """
    # A second round only where someone deleted the model that was in the way.
    while True:
        if run_id is not None:
            of_run = select(Model).where(Model.project_ref == project.id, Model.run_id == run_id)
            if (model := session.scalar(locked(session, of_run))) is not None:
                return model, False
        public_id = new_public_id()
        row = {"project_ref": project.id, "run_id": run_id, "public_id": public_id, "name": name, "request": request}
        session.execute(insert(Model).values({**row, "created_at": time.time()}).on_conflict_do_nothing())
        if (model := session.scalar(select(Model).where(Model.public_id == public_id))) is not None:
            return model, True

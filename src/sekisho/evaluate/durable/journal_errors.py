"""What can go wrong with a run.

SekishoError
├── InvalidRequest        the caller can mend it
│   ├── RunChanged        the plan is not the one with which the run was begun
│   ├── StepChanged       the inputs of a step are not those with which it was begun
│   ├── ArtifactChanged   a file of a finished step is gone or is another one
│   └── WrongFolder       the folder is another run's, a copy, or not there
├── NotFound              no such step
└── ServiceError
    ├── RunBusy           somebody else works on the run, or a process of its earlier life does not end
    ├── RunLost           somebody else took the run over, or it was forgotten: nothing more is written
    └── FolderUnusable    disk full, rights, …

An error of the step's own work passes through as it is. StoreUnavailable comes as everywhere.
"""

from sekisho.core.errors import InvalidRequest, ServiceError


class RunChanged(InvalidRequest):
    code = "run_changed"


class StepChanged(InvalidRequest):
    code = "step_changed"


class ArtifactChanged(InvalidRequest):
    code = "artifact_changed"


class WrongFolder(InvalidRequest):
    code = "wrong_folder"


class RunBusy(ServiceError):
    code = "run_busy"


class RunLost(ServiceError):
    code = "run_lost"


class FolderUnusable(ServiceError):
    code = "folder_unusable"

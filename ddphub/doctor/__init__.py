"""`ddphub doctor`: explains one place, or every rank's place of a job.

```
checkup     wires: settings, place and hub in threads, then the meeting of the ranks
settings    what is set, from where, and what is wrong with it
place       a directory: can it be written, how do locks and copies work there
hub         does it answer, does it know the key, which time does it have
store       the job's store, or one that the doctor opens for itself in a SLURM step
meeting     ranks tell rank 0 what they found, and try locks against each other
report      what is printed
```
"""

from ddphub.doctor.checkup import examine
from ddphub.doctor.report import Report

__all__ = ["Report", "examine"]

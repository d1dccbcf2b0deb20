"""Jobs of all kinds."""

TEXT = """
enum JobType
  commit stream mirror backup create amend snapshot-load snapshot-save snapshot-delete

enum JobStatus
  undefined created running paused ready standby waiting pending aborting concluded null

event JOB_STATUS_CHANGE
  id: str
  status: JobStatus

command job-pause
  id: str

command job-resume
  id: str

command job-cancel
  id: str

command job-complete
  id: str

command job-dismiss
  id: str

command job-finalize
  id: str

struct JobInfo
  id: str
  type: JobType
  status: JobStatus
  current-progress: int
  total-progress: int
  error?: str

command query-jobs -> [JobInfo]
"""

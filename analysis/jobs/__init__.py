"""Jobs: command lines that wait for one worker, which keeps one model in memory.

    jobs/worker.lock        held by the worker as long as it lives
    jobs/slot.json          the model in memory: name, device, dtype, bytes, since when
    jobs/unload             asks the worker to let the model go
    jobs/<utc time>-<verb>/
        spec.json           {"format": 1, "arguments": ["retrieval", "--grid", "quick"], "folder": where it was asked}
        state.json          queued, loading, running, done, failed, cancelled or interrupted; its run, sentence, times
        progress.jsonl      {"title", "done", "total", "time"}, a line per step
        cancel              asks the worker to stop this job
        log.txt             what the command printed, and the traceback of what went wrong

A job is a line that anybody can repeat by hand: `headscope` and its arguments, in the folder where they were asked.
The folder `jobs` stands beside the folder of the runs, or where the environment variable HEADSCOPE_JOBS says.
Everybody but the worker only adds files (a job, `cancel`, `unload`); state.json, slot.json and progress.jsonl are the
worker's alone.
"""

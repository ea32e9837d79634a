"""Downstream tasks, one a file; what a task is, and how a new one is written.

A task is one file, in this folder or anywhere else, that has a function

    def task(config: ConfigDict, here: str) -> None

which changes a config of fine-tuning: what is made of an example, what is trained, what is scored. A file that says
`TRAINS = False` is a task that trains nothing: its function changes a config of an evaluation, `configs/evaluate.py`,
in which the run's own evaluators do not count and `config.evals` has no line yet.

Parts that only this task has are classes of the same file, by the names that such parts have everywhere: `Field`,
`Objective`, `Evaluator`. `here` is what names them in the config:
`config.objectives.answer = {"name": here, "weight": 1.0}`.
"""

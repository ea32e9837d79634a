"""Ablation grids: every row with every seed, one training run each, and what they come to.

    python -m maskvlm_jax.ablate --config=configs/ablations.py:table=losses

Each run is a command of its own (`maskvlm_jax.main`), shown in the log beside its workdir; several may run side by
side, each on its share of the cores, and share what they compile, under `compiled/`. A grid that was stopped goes on
where it was by the same command: finished runs are read, those under way resume. `table.md`, `table.csv` and
`plot.png` are written anew behind every run.
"""

from maskvlm_jax import main

if __name__ == "__main__":
    main.command_line.leave(main.main())

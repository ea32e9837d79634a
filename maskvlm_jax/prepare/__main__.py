"""Prepares a set: looks at every example once, and writes those that are sound as shards for the source `array_record`.

    python -m maskvlm_jax.prepare --config=configs/prepare.py:data=coco --config.data.root=FOLDER --config.out=OUT

Two phases, over processes: every picture is decoded, measured and hashed, in pieces that are kept in OUT/SPLIT/work;
then what is left is written, shard by shard, and the manifest last. Stopped at any point, the same command goes on
where it was. The shards are the same bytes however many processes made them and however often they were stopped.
"""

if __name__ == "__main__":
    from maskvlm_jax import main  # not above: worker processes do without it, and without JAX

    main.command_line.leave(main.main())
